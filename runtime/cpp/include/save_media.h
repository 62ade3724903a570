/*
 * save_media.h: pictures and sounds of files for save_runtime.h, and masks into files. A library of its
 * own (libsave_media, with libpng, libjpeg and libsndfile): save_runtime needs neither it nor them.
 *
 *     save_picture picture;
 *     if (save_read_picture("frame.png", &picture) != SAVE_OK) puts(save_media_last_error());
 *     save_mask(runtime, &picture.frame, embedding, mask);
 *     save_write_mask("mask.png", mask, picture.frame.width, picture.frame.height);
 *     save_free_picture(&picture);
 *
 * Status, details, threads and exceptions: as in save_runtime.h. Errors of these functions are in
 * save_media_last_error(), not in save_last_error().
 */
#ifndef SAVE_MEDIA_H
#define SAVE_MEDIA_H

#include "save_runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

SAVE_API const char* save_media_last_error(void);
SAVE_API int save_media_last_detail(void);

/* frame and sound are valid until the matching save_free_ function; owner belongs to the library. */
typedef struct save_picture {
    save_frame frame;
    void* owner;
} save_picture;

typedef struct save_recording {
    save_sound sound; /* one channel: those of the file are mixed by the places it gives them */
    void* owner;
} save_recording;

/* A PNG or JPEG file, told by its content: RGB without alpha, turned as Exif says. */
SAVE_API int save_read_picture(const char* path, save_picture* picture);
/* A wav, flac or ogg file; of a long one at least `seconds` from its start, 0: all of it. */
SAVE_API int save_read_sound(const char* path, double seconds, save_recording* recording);
/* mask: width * height bytes, as of save_mask -> an 8-bit gray PNG. The file appears when it is whole. */
SAVE_API int save_write_mask(const char* path, const uint8_t* mask, int width, int height);

/* What was read is released; NULL, and what was freed before, are allowed. */
SAVE_API void save_free_picture(save_picture* picture);
SAVE_API void save_free_recording(save_recording* recording);

#ifdef __cplusplus
}
#endif

#endif
