# TensorRT or TensorRT-RTX with CUDA: asked for by -DTENSORRT_ROOT=, else where the system has them.
if(SAVE_TENSORRT_ROOT AND NOT TENSORRT_ROOT)
    set(TENSORRT_ROOT ${SAVE_TENSORRT_ROOT})  # an older name of it
endif()
if(NOT SAVE_TENSORRT)
    message(STATUS "backend tensorrt: not wanted (SAVE_TENSORRT=OFF)")
    return()
endif()

set(library_names
    tensorrt_rtx libtensorrt_rtx.so.1 nvinfer libnvinfer.so.11 libnvinfer.so.10)
if(TENSORRT_ROOT)
    find_path(SAVE_TENSORRT_INCLUDE NvInferRuntime.h REQUIRED
        PATHS ${TENSORRT_ROOT} PATH_SUFFIXES include NO_DEFAULT_PATH)
    find_library(SAVE_TENSORRT_LIBRARY NAMES ${library_names} REQUIRED
        PATHS ${TENSORRT_ROOT} PATH_SUFFIXES lib lib64 NO_DEFAULT_PATH)
else()
    find_path(SAVE_TENSORRT_INCLUDE NvInferRuntime.h
        PATHS /usr/local/tensorrt /opt/tensorrt PATH_SUFFIXES include)
    find_library(SAVE_TENSORRT_LIBRARY NAMES ${library_names}
        PATHS /usr/local/tensorrt /opt/tensorrt PATH_SUFFIXES lib lib64)
    if(NOT SAVE_TENSORRT_INCLUDE OR NOT SAVE_TENSORRT_LIBRARY)
        message(STATUS "backend tensorrt: not found; pass -DTENSORRT_ROOT= of a release of it")
        return()
    endif()
endif()

if(SAVE_CUDA_ROOT)
    find_path(SAVE_CUDA_INCLUDE cuda_runtime_api.h REQUIRED
        PATHS ${SAVE_CUDA_ROOT} PATH_SUFFIXES include NO_DEFAULT_PATH)
    find_library(SAVE_CUDART NAMES cudart libcudart.so.13 libcudart.so.12 REQUIRED
        PATHS ${SAVE_CUDA_ROOT} PATH_SUFFIXES lib lib64 NO_DEFAULT_PATH)
else()
    find_package(CUDAToolkit QUIET)
    if(NOT CUDAToolkit_FOUND AND TENSORRT_ROOT)
        message(FATAL_ERROR "TensorRT needs CUDA: install its toolkit, or pass -DSAVE_CUDA_ROOT=")
    elseif(NOT CUDAToolkit_FOUND)
        message(STATUS "backend tensorrt: found, but no CUDA toolkit; pass -DSAVE_CUDA_ROOT=")
        return()
    endif()
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
list(APPEND SAVE_BACKEND_FILES ${SAVE_TENSORRT_LIBRARY})
foreach(library ${SAVE_TENSORRT_LIBRARY} ${SAVE_CUDART})
    if(TARGET ${library})
        list(APPEND SAVE_BACKEND_FOLDERS $<TARGET_FILE_DIR:${library}>)
    else()
        get_filename_component(folder ${library} DIRECTORY)
        list(APPEND SAVE_BACKEND_FOLDERS ${folder})
    endif()
endforeach()
message(STATUS "backend ${SAVE_TENSORRT_NAME}: ${SAVE_TENSORRT_LIBRARY}")
