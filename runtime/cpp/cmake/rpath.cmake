# Where programs and libraries look for the libraries of their backends: beside themselves, and in
# backends/, which in the build folder is a folder of links. CMake's own paths of a build folder end with
# a colon, and an empty entry means the current folder, whose libraries may be a stranger's.
set(targets save_runtime)
if(SAVE_TOOLS)
    list(APPEND targets save_media save-infer)
endif()
set(links "")
set(places ${CMAKE_INSTALL_RPATH})
set(number 0)
foreach(folder ${SAVE_BACKEND_FOLDERS})
    list(APPEND links COMMAND ${CMAKE_COMMAND} -E create_symlink ${folder} backends/${number})
    list(APPEND places $ORIGIN/backends/${number})
    math(EXPR number "${number} + 1")
endforeach()
add_custom_target(save_backend_links
    COMMAND ${CMAKE_COMMAND} -E make_directory backends ${links}
    WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR} VERBATIM)
set_target_properties(${targets} PROPERTIES
    BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "${places}")
foreach(target ${targets})
    add_dependencies(${target} save_backend_links)
endforeach()
