# What runs the graphs. Sets SAVE_BACKEND_LIBRARIES, SAVE_BACKEND_FILES that a program ships, and their
# SAVE_BACKEND_FOLDERS; each backend is one source and one definition.
set(SAVE_BACKEND_LIBRARIES "")
set(SAVE_BACKEND_FILES "")
set(SAVE_BACKEND_FOLDERS "")

find_package(OpenVINO QUIET COMPONENTS Runtime)
if(OpenVINO_FOUND)
    target_sources(save_core PRIVATE src/session_openvino.cpp)
    target_compile_definitions(save_core PRIVATE SAVE_WITH_OPENVINO)
    target_link_libraries(save_core PRIVATE openvino::runtime)
    list(APPEND SAVE_BACKEND_LIBRARIES openvino::runtime)
    list(APPEND SAVE_BACKEND_FILES $<TARGET_FILE:openvino::runtime>)
    list(APPEND SAVE_BACKEND_FOLDERS $<TARGET_FILE_DIR:openvino::runtime>)
    # its headers write their paths into what is compiled
    get_target_property(folders openvino::runtime INTERFACE_INCLUDE_DIRECTORIES)
    foreach(folder ${folders})
        set_property(SOURCE src/session_openvino.cpp
            APPEND PROPERTY COMPILE_OPTIONS -fmacro-prefix-map=${folder}=openvino)
    endforeach()
    message(STATUS "backend openvino ${OpenVINO_VERSION}")
else()
    message(STATUS "backend openvino: not found; pip install openvino and pass "
        "-DOpenVINO_DIR=$(python -c \"import openvino.utils as u; print(u.get_cmake_path())\")")
endif()

find_package(onnxruntime QUIET)
if(onnxruntime_FOUND)
    target_sources(save_core PRIVATE
        src/cuda_driver.cpp src/onnxruntime.cpp src/session_onnxruntime.cpp)
    target_compile_definitions(save_core PRIVATE SAVE_WITH_ONNXRUNTIME)
    target_link_libraries(save_core PRIVATE onnxruntime::onnxruntime)
    list(APPEND SAVE_BACKEND_LIBRARIES onnxruntime::onnxruntime ${CMAKE_DL_LIBS})
    list(APPEND SAVE_BACKEND_FILES $<TARGET_FILE:onnxruntime::onnxruntime>)
    list(APPEND SAVE_BACKEND_FOLDERS $<TARGET_FILE_DIR:onnxruntime::onnxruntime>)
    message(STATUS "backends onnxruntime and onnxruntime_cuda ${onnxruntime_VERSION}")
else()
    message(STATUS "backend onnxruntime: not found; pass -Donnxruntime_DIR= of a C++ release of it")
endif()

include(${CMAKE_CURRENT_LIST_DIR}/tensorrt.cmake)

if(NOT SAVE_BACKEND_LIBRARIES)
    message(FATAL_ERROR "no backend: at least openvino or onnxruntime is needed, see above")
endif()
