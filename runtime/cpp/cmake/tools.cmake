# save-infer and its readers of pictures and sounds.
find_package(PNG QUIET)
find_package(JPEG QUIET)
find_path(SAVE_SNDFILE_INCLUDE sndfile.h)
find_library(SAVE_SNDFILE_LIBRARY sndfile)
if(NOT PNG_FOUND OR NOT JPEG_FOUND OR NOT SAVE_SNDFILE_INCLUDE OR NOT SAVE_SNDFILE_LIBRARY)
    message(FATAL_ERROR "save-infer needs libpng, libjpeg and libsndfile: apt-get install libpng-dev "
        "libjpeg-dev libsndfile1-dev, or build the library alone with -DSAVE_TOOLS=OFF")
endif()

add_library(save_media OBJECT tools/conformance.cpp tools/image_exif.cpp tools/image_file.cpp
    tools/image_jpeg.cpp tools/image_png.cpp tools/sound_file.cpp)
target_include_directories(save_media PUBLIC include src tools)
target_include_directories(save_media SYSTEM PRIVATE ${SAVE_SNDFILE_INCLUDE})
target_link_libraries(save_media PRIVATE PNG::PNG JPEG::JPEG)
set(SAVE_MEDIA_LIBRARIES PNG::PNG JPEG::JPEG ${SAVE_SNDFILE_LIBRARY})

add_executable(save-infer tools/save_infer.cpp $<TARGET_OBJECTS:save_media> $<TARGET_OBJECTS:save_core>)
target_include_directories(save-infer PRIVATE include src tools)
target_link_libraries(save-infer PRIVATE
    ${SAVE_BACKEND_LIBRARIES} ${SAVE_MEDIA_LIBRARIES} nlohmann_json::nlohmann_json Threads::Threads)
install(TARGETS save-infer)
