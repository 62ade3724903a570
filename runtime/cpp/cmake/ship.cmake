# Runs at installation: copies SAVE_BACKEND_FILES, what they link to and what they open by name beside
# the library. Packages of the system stay packages: only what lies elsewhere is copied.
set(opened "")
foreach(file ${SAVE_BACKEND_FILES})
    get_filename_component(folder ${file} DIRECTORY)
    file(GLOB found ${folder}/libopenvino_onnx_frontend.so.*
        ${folder}/libopenvino_intel_cpu_plugin.so ${folder}/libonnxruntime_providers_shared.so)
    list(APPEND opened ${found})
endforeach()
set(files ${SAVE_BACKEND_FILES} ${opened})
list(FILTER files EXCLUDE REGEX "^(/usr)?/lib/")
if(NOT files)
    message(STATUS "nothing to copy: the backends are packages of this system")
    return()
endif()
file(GET_RUNTIME_DEPENDENCIES LIBRARIES ${files}
    RESOLVED_DEPENDENCIES_VAR linked UNRESOLVED_DEPENDENCIES_VAR missing
    PRE_EXCLUDE_REGEXES "^(ld-linux.*|lib(c|m|dl|rt|pthread|gcc_s|stdc[+][+])[.]so.*)$"
    POST_EXCLUDE_REGEXES "^(/usr)?/lib/")
if(missing)
    message(WARNING "not found, so not copied: ${missing}")
endif()
list(APPEND files ${linked})
list(REMOVE_DUPLICATES files)
file(INSTALL ${files} FOLLOW_SYMLINK_CHAIN DESTINATION "${CMAKE_INSTALL_PREFIX}/${SAVE_LIBDIR}")
