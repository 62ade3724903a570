/*
 * save_runtime.h: masks what sounds in a frame, from a bundle written by save-export.
 *
 *     save_params params = save_params_default();
 *     save_runtime* runtime = NULL;
 *     if (save_open("bundle/", &params, &runtime) != SAVE_OK) puts(save_last_error());
 *     save_embed_at(runtime, &sound, floor(t), embedding); // once per second of sound
 *     save_mask(runtime, &frame, embedding, mask);         // once per frame, shown at t
 *     save_close(runtime);
 *
 * Status: every function that can fail returns a save_status; the codes are the exit codes of the
 * command line. Its text (what, got, expected, next) is in save_last_error() of the same thread.
 * No exception crosses this header, and no output is written to stdout or stderr by this library.
 *
 * Threads: a runtime may be used by several threads; its calls run one after the other. Two runtimes
 * run at the same time. save_close must be the last call on a runtime. The error text is per thread.
 *
 * Memory: the caller owns every buffer it passes and every result; nothing keeps a pointer to them.
 */
#ifndef SAVE_RUNTIME_H
#define SAVE_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define SAVE_API
#else
#define SAVE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define SAVE_EMBEDDING_SIZE 128 /* floats of one audio embedding */
#define SAVE_SAMPLE_RATE 16000  /* Hz, what the network hears; other rates are resampled */
#define SAVE_WINDOW_SAMPLES 16000

typedef enum save_status {
    SAVE_OK = 0,
    SAVE_INPUT = 1,      /* usage, input, or a bundle that is incomplete or altered */
    SAVE_PARITY = 2,     /* the results differ from what the bundle promises */
    SAVE_UNAVAILABLE = 3 /* a library, a device or a GPU that is not on this machine */
} save_status;

typedef enum save_detail {
    SAVE_DETAIL_NONE = 0,
    SAVE_DETAIL_ARGUMENT = 1, /* a null pointer or a number out of range */
    SAVE_DETAIL_DATA = 2,     /* a frame, a sound or a file that cannot be used */
    SAVE_DETAIL_BUNDLE = 3,   /* incomplete, altered or of another version */
    SAVE_DETAIL_PARITY = 4,   /* golden or conformance samples are over their budget, or
                                 logits that are not finite */
    SAVE_DETAIL_BACKEND = 5,  /* not compiled in, or it cannot load the graph */
    SAVE_DETAIL_DEVICE = 6,   /* no usable GPU or driver */
    SAVE_DETAIL_ENGINE = 7,   /* an engine for another library version, GPU or system */
    SAVE_DETAIL_INTERNAL = 8  /* out of memory, or a defect of this library */
} save_detail;

/* Text of this thread's last failed call: "what", then indented got, expected, next. Never NULL;
 * valid until the next call of this thread. */
SAVE_API const char* save_last_error(void);
/* save_detail of this thread's last failed call. */
SAVE_API int save_last_detail(void);
/* Of this library, such as "0.2.0". */
SAVE_API const char* save_version(void);
/* Backends compiled into this library, separated by spaces, such as "openvino tensorrt_rtx". */
SAVE_API const char* save_backends(void);

typedef struct save_runtime save_runtime;

typedef struct save_params {
    size_t struct_size;    /* set by save_params_default: fields may be added at the end */
    const char* backend;   /* auto, openvino, onnxruntime, onnxruntime_cuda, tensorrt, tensorrt_rtx.
                              auto: the CPU backend that is faster here, of those compiled in:
                              openvino, but onnxruntime for INT8 on a CPU without an INT8 dot product.
                              onnxruntime_cuda and engines run the model graph on a GPU, the audio
                              graph stays on the CPU. */
    const char* cache_dir; /* for a faster start: what OpenVINO and TensorRT-RTX compile, and marks that
                              large files were compared with their hashes. It is trusted, so it must be
                              a folder that only you can write, such as ~/.cache/save-deploy, which
                              Python uses. NULL: nothing is kept */
    int threads;           /* of a CPU backend; 0: processors this process may use, at most as many as
                              the machine has physical cores */
    int verify_files;      /* 1: compare size and sha256 of every file first, and refuse one that
                              changes before it is opened; with cache_dir, CPU backends compare large
                              files again only after they changed. 0: only sizes */
    int device;            /* CUDA device of an engine or of onnxruntime_cuda */
    int trust_engine;      /* 0: an engine is code, and only one built on this machine by this user
                              runs; 1: the caller trusts where the bundle comes from */
    float threshold;       /* of save_mask: probability above which a pixel sounds; 0: 0.5 */
} save_params;

SAVE_API save_params save_params_default(void);

typedef struct save_info {
    int res;                   /* side of the network's square input and of its logits, pixels */
    int batch;                 /* frames per call of the model graph */
    int threads;               /* of the CPU backend */
    const char* model;         /* vit_t, vit_b, vit_l, vit_h */
    const char* precision;     /* fp32, fp16, ... */
    const char* backend;       /* what runs the model graph */
    const char* audio_backend; /* what runs the audio graph */
} save_info;

/* 8-bit RGB, top row first. row_bytes 0: rows follow each other without a gap. */
typedef struct save_frame {
    const uint8_t* rgb;
    int width;
    int height;
    size_t row_bytes;
} save_frame;

/* Interleaved samples in [-1,1]; two or three channels are averaged, 4 to 8 mixed as FFmpeg mixes the
 * usual layout of so many (6: FL FR FC LFE BL BR) and divided by the sum of the weights, more averaged;
 * other rates than 16 kHz are resampled. Samples that are not finite, or above 16 as integers that
 * nobody divided are, are refused where they are heard. */
typedef struct save_sound {
    const float* samples;
    size_t n_frames; /* samples per channel */
    int n_channels;
    int rate_hz; /* 1000 .. 768000 */
} save_sound;

typedef struct save_parity {
    int n_frames;
    double max_abs_err;    /* of logits, against the eager model */
    double mask_agreement; /* IoU of the masks of all golden samples pooled */
    double embedding_err;  /* largest absolute error of an audio embedding */
} save_parity;

/* Open a bundle: manifest, files, engine header, then both graphs. params NULL: the defaults.
 * *runtime is NULL unless SAVE_OK is returned. */
SAVE_API int save_open(const char* bundle, const save_params* params, save_runtime** runtime);
/* Release everything; NULL is allowed. */
SAVE_API void save_close(save_runtime* runtime);
/* Strings are valid until save_close. */
SAVE_API int save_describe(const save_runtime* runtime, save_info* info);

/* What is heard with frame `index` of AVSBench, whose frames are a second apart -> embedding:
 * SAVE_EMBEDDING_SIZE floats. The second starts at 0.96 * index s, as VGGish cuts a sound into
 * examples; past the end it is the last full second; a shorter sound is completed with silence. */
SAVE_API int save_embed(
    save_runtime* runtime, const save_sound* sound, int index, float* embedding);
/* The second from start_s on (rounded to a sample at 16 kHz), silent after the end of the sound. For
 * video: a frame at time t hears start_s = floor(t). Only this second of the sound is read and
 * resampled, to what resampling all of it gives there, so an hour may be walked through. */
SAVE_API int save_embed_at(
    save_runtime* runtime, const save_sound* sound, double start_s, float* embedding);
/* One frame and an embedding, which must be finite -> logits: res * res floats, sounding where > 0. */
SAVE_API int save_infer(
    save_runtime* runtime, const save_frame* frame, const float* embedding, float* logits);
/* n frames, n embeddings (n, SAVE_EMBEDDING_SIZE) -> logits (n, res, res). Fills whole batches of
 * the graph, the last one completed with its last frame. */
SAVE_API int save_infer_many(save_runtime* runtime, const save_frame* frames,
    const float* embeddings, int n, float* logits);
/* One frame and an embedding -> mask: width * height bytes, 255 = sounding (above the threshold of
 * save_params), 0 = not. */
SAVE_API int save_mask(
    save_runtime* runtime, const save_frame* frame, const float* embedding, uint8_t* mask);
/* logits (res, res) -> mask (height, width) as save_mask makes it with a threshold of 0.5. */
SAVE_API int save_mask_of_logits(
    const float* logits, int res, int width, int height, uint8_t* mask);

/* The golden samples of the bundle through both graphs. SAVE_PARITY when they are over the budget
 * the bundle was exported with; *parity (may be NULL) is filled in either case. */
SAVE_API int save_self_test(save_runtime* runtime, save_parity* parity);

/* What the network sees: frame -> image (res, res, 3), bilinear with antialias. */
SAVE_API int save_make_image(const save_frame* frame, int res, uint8_t* image);
/* What the network hears: second `index` of a sound -> waveform of SAVE_WINDOW_SAMPLES floats. */
SAVE_API int save_make_waveform(const save_sound* sound, int index, float* waveform);
/* The same for the second from start_s on, as save_embed_at hears it. */
SAVE_API int save_make_waveform_at(const save_sound* sound, double start_s, float* waveform);

#ifdef __cplusplus
}
#endif

#endif
