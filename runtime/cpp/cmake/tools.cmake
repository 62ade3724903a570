# Readers of pictures and sounds: libsave_media, and within save-infer.
find_package(PNG QUIET)
find_package(JPEG QUIET)
find_path(SAVE_SNDFILE_INCLUDE sndfile.h)
find_library(SAVE_SNDFILE_LIBRARY sndfile)
if(NOT PNG_FOUND OR NOT JPEG_FOUND OR NOT SAVE_SNDFILE_INCLUDE OR NOT SAVE_SNDFILE_LIBRARY)
    message(FATAL_ERROR "save-infer needs libpng, libjpeg and libsndfile: apt-get install libpng-dev "
        "libjpeg-dev libsndfile1-dev, or build the library alone with -DSAVE_TOOLS=OFF")
endif()

add_library(save_readers OBJECT tools/image_exif.cpp tools/image_file.cpp tools/image_jpeg.cpp
    tools/image_png.cpp tools/sound_file.cpp)
target_include_directories(save_readers PUBLIC include src tools)
target_include_directories(save_readers SYSTEM PRIVATE ${SAVE_SNDFILE_INCLUDE})
target_link_libraries(save_readers PRIVATE PNG::PNG JPEG::JPEG)
set(SAVE_MEDIA_LIBRARIES PNG::PNG JPEG::JPEG ${SAVE_SNDFILE_LIBRARY})

add_library(save_media SHARED
    tools/media_api.cpp $<TARGET_OBJECTS:save_readers> $<TARGET_OBJECTS:save_base>)
add_library(save_runtime::save_media ALIAS save_media)
target_include_directories(save_media PRIVATE include src tools)
target_link_libraries(save_media PRIVATE ${SAVE_MEDIA_LIBRARIES} INTERFACE save_runtime)
set_target_properties(save_media PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION 0)

add_library(save_conformance OBJECT tools/conformance.cpp)
target_include_directories(save_conformance PUBLIC include src tools)
set(SAVE_TOOL_OBJECTS
    ${SAVE_CORE_OBJECTS} $<TARGET_OBJECTS:save_readers> $<TARGET_OBJECTS:save_conformance>)

add_executable(save-infer tools/save_infer.cpp ${SAVE_TOOL_OBJECTS})
target_include_directories(save-infer PRIVATE include src tools)
target_link_libraries(save-infer PRIVATE
    ${SAVE_BACKEND_LIBRARIES} ${SAVE_MEDIA_LIBRARIES} nlohmann_json::nlohmann_json Threads::Threads)
