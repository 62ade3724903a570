#include "output_file.hpp"

#include <cctype>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <random>

#include <fcntl.h>
#include <unistd.h>

#include "error.hpp"
#include "files.hpp"

namespace save_core {
namespace {

namespace fs = std::filesystem;

std::mutex writing;       // one file at a time, so that the handler knows which
char unfinished[4096];    // path of the file that is not renamed yet, for the signal handler
volatile std::sig_atomic_t has_unfinished = 0;

extern "C" void stop(int number) {
    if (has_unfinished != 0) ::unlink(unfinished);
    ::_exit(128 + number);
}

[[noreturn]] void failed(const std::string& path, int number) {
    throw Error(SAVE_DETAIL_DATA, "file cannot be written", path + ": " + std::strerror(number));
}

struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Closer>;

// 0, or the number of the system's error.
int write_all(File file, const void* data, std::size_t size) {
    errno = EIO;
    if (std::fwrite(data, 1, size, file.get()) != size) return errno;
    return std::fclose(file.release()) == 0 ? 0 : errno;  // a full disk may show here
}

bool is_special(const std::string& path) {
    for (const char* start : {"/dev/std", "/dev/fd/", "/proc/"})
        if (path.rfind(start, 0) == 0) return true;
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    return fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status);
}

// What a link leads to, also where nothing is there yet.
fs::path followed(const std::string& path) {
    std::error_code error;
    fs::path target = path;
    for (int n = 0; fs::is_symlink(fs::symlink_status(target, error)); ++n) {
        const fs::path next = fs::read_symlink(target, error);
        if (error || n == 40) failed(path, error ? error.value() : ELOOP);
        target = target.parent_path() / next;  // next alone where it is absolute
    }
    return target;
}

}  // namespace

void write_file(const std::string& path, const void* data, std::size_t size) {
    if (is_special(path)) {
        File through(std::fopen(path.c_str(), "wb"));
        if (!through) failed(path, errno);
        if (const int number = write_all(std::move(through), data, size)) failed(path, number);
        return;
    }
    write_file(path, [&](std::FILE* file) {
        errno = EIO;
        return std::fwrite(data, 1, size, file) == size ? 0 : errno;
    });
}

void write_file(const std::string& path, const std::function<int(std::FILE*)>& fill) {
    const fs::path target = followed(path);
    const std::lock_guard<std::mutex> lock(writing);
    const std::string beside =
        (target.parent_path() / (".save.partial-" + std::to_string(std::random_device()()))).string();
    if (beside.size() >= sizeof unfinished) failed(path, ENAMETOOLONG);

    sigset_t all, before;  // no signal between the new file and its note for the handler
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    // O_EXCL: a new file, whatever link was planted there
    const int descriptor = ::open(beside.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    int number = descriptor < 0 ? errno : 0;
    if (number == 0) {
        std::memcpy(unfinished, beside.c_str(), beside.size() + 1);
        has_unfinished = 1;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (number != 0) failed(path, number);

    struct Remover {  // unless it was renamed
        const std::string& path;
        ~Remover() {
            ::unlink(path.c_str());
            has_unfinished = 0;
        }
    } remover{beside};
    File file(::fdopen(descriptor, "w+b"));
    number = file ? fill(file.get()) : errno;
    if (file && std::fclose(file.release()) != 0 && number == 0) number = errno;
    if (number == 0 && std::rename(beside.c_str(), target.c_str()) != 0) number = errno;
    if (number != 0) failed(path, number);
}

void stop_cleanly() {
    for (const int number : {SIGINT, SIGTERM, SIGHUP})
        if (std::signal(number, SIG_IGN) != SIG_IGN) std::signal(number, stop);
    std::signal(SIGPIPE, SIG_IGN);
    std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of writing too
}

std::string file_name(const std::string& path) {
    std::string name = path;
    const auto ends = [&](const char* with) {
        const std::string end = with;
        return name.size() > end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
    };
    while (ends("/") || ends("/.")) name.resize(name.rfind('/'));
    return name.empty() ? path : name;
}

void check_not_input(const std::string& path, const std::string& input) {
    std::error_code error;
    if (fs::equivalent(path, input, error) && !error)
        throw Error(SAVE_DETAIL_DATA, "output and input are the same file", path, "another name");
}

void check_not_of_bundle(const std::string& path, const std::string& bundle) {
    std::error_code error;
    const fs::path folder = fs::canonical(bundle, error);
    if (error) return;
    const fs::path target = fs::canonical(path, error);  // an error: nothing is there yet
    if (error) return;
    const fs::path inside = target.lexically_relative(folder);
    if (!inside.empty() && *inside.begin() != "..")
        throw Error(SAVE_DETAIL_DATA, "the output is a file of the bundle", path, "another folder");
}

void check_mask_name(const std::string& path) {
    std::string suffix = fs::path(path).extension().string();
    for (char& c : suffix) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (!suffix.empty() && suffix != "." && suffix != ".png" && !is_special(path))
        throw Error(SAVE_DETAIL_DATA, "mask cannot be written", path, "a .png path");
}

}  // namespace save_core
