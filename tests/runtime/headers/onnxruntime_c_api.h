/* The names of ONNX Runtime's C interface that runtime/cpp uses, declared by us from its documentation: enough to
   compile its sources and to run them against fake_onnxruntime.cpp. The layout is not the library's. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 1

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtValue OrtValue;
typedef struct OrtAllocator OrtAllocator;
typedef struct OrtIoBinding OrtIoBinding;
typedef struct OrtCUDAProviderOptionsV2 OrtCUDAProviderOptionsV2;

typedef enum ONNXTensorElementDataType {
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
} ONNXTensorElementDataType;
typedef enum OrtAllocatorType { OrtDeviceAllocator = 0, OrtArenaAllocator = 1 } OrtAllocatorType;
typedef enum OrtMemType { OrtMemTypeDefault = 0 } OrtMemType;
typedef enum OrtLoggingLevel { ORT_LOGGING_LEVEL_FATAL = 4 } OrtLoggingLevel;

typedef struct OrtApi {
    const char* (*GetErrorMessage)(const OrtStatus*);
    void (*ReleaseStatus)(OrtStatus*);
    OrtStatus* (*CreateEnv)(OrtLoggingLevel, const char*, OrtEnv**);
    void (*ReleaseEnv)(OrtEnv*);
    OrtStatus* (*CreateSessionOptions)(OrtSessionOptions**);
    void (*ReleaseSessionOptions)(OrtSessionOptions*);
    OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int);
    OrtStatus* (*SetInterOpNumThreads)(OrtSessionOptions*, int);
    OrtStatus* (*DisableMemPattern)(OrtSessionOptions*);
    OrtStatus* (*AddSessionConfigEntry)(OrtSessionOptions*, const char*, const char*);
    OrtStatus* (*CreateSession)(const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**);
    void (*ReleaseSession)(OrtSession*);
    OrtStatus* (*SessionGetInputCount)(const OrtSession*, size_t*);
    OrtStatus* (*SessionGetOutputCount)(const OrtSession*, size_t*);
    OrtStatus* (*SessionGetInputName)(const OrtSession*, size_t, OrtAllocator*, char**);
    OrtStatus* (*SessionGetOutputName)(const OrtSession*, size_t, OrtAllocator*, char**);
    OrtStatus* (*SessionGetInputTypeInfo)(const OrtSession*, size_t, OrtTypeInfo**);
    OrtStatus* (*SessionGetOutputTypeInfo)(const OrtSession*, size_t, OrtTypeInfo**);
    OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator**);
    OrtStatus* (*AllocatorFree)(OrtAllocator*, void*);
    OrtStatus* (*CastTypeInfoToTensorInfo)(const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**);
    void (*ReleaseTypeInfo)(OrtTypeInfo*);
    OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo*, ONNXTensorElementDataType*);
    OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo*, size_t*);
    OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t);
    OrtStatus* (*CreateCpuMemoryInfo)(OrtAllocatorType, OrtMemType, OrtMemoryInfo**);
    OrtStatus* (*CreateMemoryInfo)(const char*, OrtAllocatorType, int, OrtMemType, OrtMemoryInfo**);
    void (*ReleaseMemoryInfo)(OrtMemoryInfo*);
    OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void*, size_t, const int64_t*,
        size_t, ONNXTensorElementDataType, OrtValue**);
    OrtStatus* (*CreateTensorAsOrtValue)(
        OrtAllocator*, const int64_t*, size_t, ONNXTensorElementDataType, OrtValue**);
    OrtStatus* (*GetTensorMutableData)(OrtValue*, void**);
    void (*ReleaseValue)(OrtValue*);
    OrtStatus* (*Run)(OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*, size_t,
        const char* const*, size_t, OrtValue**);
    OrtStatus* (*CreateAllocator)(const OrtSession*, const OrtMemoryInfo*, OrtAllocator**);
    void (*ReleaseAllocator)(OrtAllocator*);
    OrtStatus* (*CreateIoBinding)(OrtSession*, OrtIoBinding**);
    void (*ReleaseIoBinding)(OrtIoBinding*);
    OrtStatus* (*BindInput)(OrtIoBinding*, const char*, const OrtValue*);
    OrtStatus* (*BindOutput)(OrtIoBinding*, const char*, const OrtValue*);
    OrtStatus* (*RunWithBinding)(OrtSession*, const OrtRunOptions*, const OrtIoBinding*);
    OrtStatus* (*CreateCUDAProviderOptions)(OrtCUDAProviderOptionsV2**);
    OrtStatus* (*UpdateCUDAProviderOptions)(
        OrtCUDAProviderOptionsV2*, const char* const*, const char* const*, size_t);
    void (*ReleaseCUDAProviderOptions)(OrtCUDAProviderOptionsV2*);
    OrtStatus* (*SessionOptionsAppendExecutionProvider_CUDA_V2)(
        OrtSessionOptions*, const OrtCUDAProviderOptionsV2*);
} OrtApi;

typedef struct OrtApiBase {
    const OrtApi* (*GetApi)(uint32_t);
    const char* (*GetVersionString)(void);
} OrtApiBase;

#ifdef __cplusplus
extern "C"
#endif
const OrtApiBase* OrtGetApiBase(void);
