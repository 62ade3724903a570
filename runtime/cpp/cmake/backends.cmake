# What runs the graphs. Sets SAVE_BACKEND_LIBRARIES; each backend is one source and one definition.
set(SAVE_BACKEND_LIBRARIES "")

find_package(OpenVINO QUIET COMPONENTS Runtime)
if(OpenVINO_FOUND)
    target_sources(save_core PRIVATE src/session_openvino.cpp)
    target_compile_definitions(save_core PRIVATE SAVE_WITH_OPENVINO)
    target_link_libraries(save_core PRIVATE openvino::runtime)
    list(APPEND SAVE_BACKEND_LIBRARIES openvino::runtime)
    message(STATUS "backend openvino ${OpenVINO_VERSION}")
else()
    message(STATUS "backend openvino: not found; pip install openvino and pass "
        "-DOpenVINO_DIR=$(python -c \"import openvino.utils as u; print(u.get_cmake_path())\")")
endif()

find_package(onnxruntime QUIET)
if(onnxruntime_FOUND)
    target_sources(save_core PRIVATE src/session_onnxruntime.cpp)
    target_compile_definitions(save_core PRIVATE SAVE_WITH_ONNXRUNTIME)
    target_link_libraries(save_core PRIVATE onnxruntime::onnxruntime)
    list(APPEND SAVE_BACKEND_LIBRARIES onnxruntime::onnxruntime)
    message(STATUS "backend onnxruntime ${onnxruntime_VERSION}")
else()
    message(STATUS "backend onnxruntime: not found; pass -Donnxruntime_DIR= of a C++ release of it")
endif()

if(SAVE_TENSORRT_ROOT)
    find_path(SAVE_TENSORRT_INCLUDE NvInferRuntime.h REQUIRED
        PATHS ${SAVE_TENSORRT_ROOT} PATH_SUFFIXES include NO_DEFAULT_PATH)
    find_library(SAVE_TENSORRT_LIBRARY
        NAMES tensorrt_rtx libtensorrt_rtx.so.1 nvinfer libnvinfer.so.11 libnvinfer.so.10 REQUIRED
        PATHS ${SAVE_TENSORRT_ROOT} PATH_SUFFIXES lib lib64 NO_DEFAULT_PATH)
    if(SAVE_CUDA_ROOT)
        find_path(SAVE_CUDA_INCLUDE cuda_runtime_api.h REQUIRED
            PATHS ${SAVE_CUDA_ROOT} PATH_SUFFIXES include NO_DEFAULT_PATH)
        find_library(SAVE_CUDART NAMES cudart libcudart.so.13 libcudart.so.12 REQUIRED
            PATHS ${SAVE_CUDA_ROOT} PATH_SUFFIXES lib lib64 NO_DEFAULT_PATH)
    else()
        find_package(CUDAToolkit REQUIRED)
        set(SAVE_CUDA_INCLUDE ${CUDAToolkit_INCLUDE_DIRS})
        set(SAVE_CUDART CUDA::cudart)
    endif()
    if(SAVE_TENSORRT_LIBRARY MATCHES "tensorrt_rtx")
        set(SAVE_TENSORRT_NAME tensorrt_rtx)
    else()
        set(SAVE_TENSORRT_NAME tensorrt)
    endif()
    target_sources(save_core PRIVATE src/session_tensorrt.cpp)
    target_compile_definitions(save_core PRIVATE
        SAVE_WITH_TENSORRT SAVE_TENSORRT_NAME="${SAVE_TENSORRT_NAME}")
    target_include_directories(save_core SYSTEM PRIVATE ${SAVE_TENSORRT_INCLUDE} ${SAVE_CUDA_INCLUDE})
    list(APPEND SAVE_BACKEND_LIBRARIES ${SAVE_TENSORRT_LIBRARY} ${SAVE_CUDART})
    message(STATUS "backend ${SAVE_TENSORRT_NAME}: ${SAVE_TENSORRT_LIBRARY}")
else()
    message(STATUS "backend tensorrt: not asked for; pass -DSAVE_TENSORRT_ROOT=")
endif()

if(NOT SAVE_BACKEND_LIBRARIES)
    message(FATAL_ERROR "no backend: at least openvino or onnxruntime is needed, see above")
endif()
