/* Masks what sounds in pictures that come as they are captured: live BUNDLE WIDTH HEIGHT < capture > masks
 * A capture is a picture (8-bit RGB) and the last second of sound (16000 floats), again and again. */
#include <save_runtime.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char** argv) {
    const int width = argc == 4 ? atoi(argv[2]) : 0, height = argc == 4 ? atoi(argv[3]) : 0;
    if (width < 1 || height < 1 || width > 65535 || height > 65535) return 1;
    const size_t size = (size_t)width * (size_t)height;
    uint8_t *rgb = malloc(3 * size), *mask = malloc(size);
    float second[SAVE_WINDOW_SAMPLES], heard[SAVE_EMBEDDING_SIZE];
    save_runtime* runtime = NULL;
    int status = rgb && mask ? save_open(argv[1], NULL, &runtime) : SAVE_INPUT;
    const save_frame frame = {rgb, width, height, 0};
    const save_sound sound = {second, SAVE_WINDOW_SAMPLES, 1, SAVE_SAMPLE_RATE};
    while (status == SAVE_OK && fread(rgb, 3, size, stdin) == size &&
           fread(second, sizeof *second, SAVE_WINDOW_SAMPLES, stdin) == SAVE_WINDOW_SAMPLES) {
        status = save_embed_at(runtime, &sound, 0.0, heard);
        if (status == SAVE_OK) status = save_mask(runtime, &frame, heard, mask);
        if (status == SAVE_OK) fwrite(mask, 1, size, stdout), fflush(stdout);
    }
    if (status != SAVE_OK) fprintf(stderr, "%s\n", save_last_error());
    save_close(runtime);
    free(rgb);
    free(mask);
    return status;
}
