/* The header is C, and null pointers are refused with a text. */
#include <stdio.h>
#include <string.h>

#include "save_runtime.h"

#define REFUSED(call, part)                                                                \
    do {                                                                                   \
        const int status = (call);                                                         \
        if (status != SAVE_INPUT || strstr(save_last_error(), part) == NULL) {             \
            printf("%s: status %d, %s\n", #call, status, save_last_error());               \
            return 1;                                                                      \
        }                                                                                  \
    } while (0)

int main(void) {
    float value = 0;
    unsigned char byte = 0;
    save_runtime* runtime = NULL;
    save_info info;
    save_params params = save_params_default();
    const save_sound sound = {&value, 1, 1, 16000};
    const save_frame frame = {&byte, 1, 1, 0};
    if (strcmp(save_version(), EXPECTED_VERSION) != 0 || save_backends()[0] == '\0') return 2;
    if (strcmp(save_last_error(), "") != 0 || save_last_detail() != SAVE_DETAIL_NONE) return 3;
    REFUSED(save_open("no/such/bundle", &params, &runtime), "not a bundle");
    if (runtime != NULL || save_last_detail() != SAVE_DETAIL_BUNDLE) return 4;
    REFUSED(save_open("no/such/bundle", NULL, &runtime), "next:");
    REFUSED(save_open(NULL, &params, &runtime), "bundle is NULL");
    REFUSED(save_open("x", &params, NULL), "runtime is NULL");
    params.threshold = 1.0F;
    REFUSED(save_open("x", &params, &runtime), "wrong threshold");
    params.struct_size = offsetof(save_params, threshold); /* of an older caller, which knows none */
    REFUSED(save_open("no/such/bundle", &params, &runtime), "not a bundle");
    params.struct_size = 0;
    REFUSED(save_open("x", &params, &runtime), "struct_size");
    REFUSED(save_describe(NULL, &info), "runtime is NULL");
    REFUSED(save_embed(NULL, &sound, 0, &value), "runtime is NULL");
    REFUSED(save_embed_at(NULL, &sound, 0, &value), "runtime is NULL");
    REFUSED(save_infer(NULL, &frame, &value, &value), "runtime is NULL");
    REFUSED(save_mask(NULL, &frame, &value, &byte), "runtime is NULL");
    REFUSED(save_self_test(NULL, NULL), "runtime is NULL");
    REFUSED(save_make_image(&frame, 0, &byte), "wrong res");
    REFUSED(save_make_image(NULL, 1, &byte), "frame is NULL");
    REFUSED(save_make_waveform(&sound, 0, NULL), "waveform is NULL");
    REFUSED(save_make_waveform_at(&sound, 0, NULL), "waveform is NULL");
    REFUSED(save_mask_of_logits(&value, 1, 0, 1, &byte), "0 x 1");
    if (save_make_image(&frame, 1, &byte) != SAVE_OK) return 5;
    if (save_mask_of_logits(&value, 1, 1, 1, &byte) != SAVE_OK || byte != 0) return 6;
    save_close(NULL);
    return 0;
}
