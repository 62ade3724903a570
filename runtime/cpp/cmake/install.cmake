# Installed: libraries, headers, save-infer, files for find_package and pkg-config, licences. In a tar
# archive: cpack --config build/cpp/CPackConfig.cmake. What the backends need at run time, copied beside
# the library: cmake --install build/cpp --component backends --prefix PREFIX.
set(SAVE_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/save_runtime)
set(SAVE_LIBRARIES save_runtime)
set(SAVE_HEADERS include/save_runtime.h include/save_runtime.hpp)
if(SAVE_TOOLS)
    list(APPEND SAVE_LIBRARIES save_media)
    list(APPEND SAVE_HEADERS include/save_media.h include/save_media.hpp)
    install(TARGETS save-infer)
endif()
install(TARGETS ${SAVE_LIBRARIES} EXPORT save_runtimeTargets)
install(FILES ${SAVE_HEADERS} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT save_runtimeTargets NAMESPACE save_runtime:: DESTINATION ${SAVE_CMAKE_DIR})

include(CMakePackageConfigHelpers)
configure_package_config_file(cmake/save_runtimeConfig.cmake.in save_runtimeConfig.cmake
    INSTALL_DESTINATION ${SAVE_CMAKE_DIR})
write_basic_package_version_file(save_runtimeConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/save_runtimeConfig.cmake
    ${CMAKE_CURRENT_BINARY_DIR}/save_runtimeConfigVersion.cmake DESTINATION ${SAVE_CMAKE_DIR})

# relative to its own place: the prefix may be moved
file(RELATIVE_PATH SAVE_PC_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
foreach(library ${SAVE_LIBRARIES})
    configure_file(cmake/${library}.pc.in ${library}.pc @ONLY)
    install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${library}.pc
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endforeach()

install(FILES THIRD_PARTY ../../LICENSE ../../NOTICE
    ../../docs/examples/mask.cpp ../../docs/cpp.md ../../docs/shipping.md
    DESTINATION ${CMAKE_INSTALL_DOCDIR} OPTIONAL)

install(CODE "
    set(SAVE_BACKEND_FILES ${SAVE_BACKEND_FILES})
    set(SAVE_LIBDIR ${CMAKE_INSTALL_LIBDIR})
    include(${CMAKE_CURRENT_LIST_DIR}/ship.cmake)" COMPONENT backends EXCLUDE_FROM_ALL)

if(PROJECT_IS_TOP_LEVEL)
    string(TOLOWER ${CMAKE_SYSTEM_NAME}-${CMAKE_SYSTEM_PROCESSOR} system)
    set(CPACK_GENERATOR TGZ)
    set(CPACK_PACKAGE_FILE_NAME save_runtime-${PROJECT_VERSION}-${system})
    set(CPACK_STRIP_FILES ON)
    set(CMAKE_SKIP_INSTALL_ALL_DEPENDENCY ON)  # an archive needs no tests
    include(CPack)
endif()
