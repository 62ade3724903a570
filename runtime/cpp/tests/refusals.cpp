// Which rules refuse the engines of a bundle on a machine that is described, not asked: for comparison
// with the Python rules.
//
//     refusals FOLDER MACHINE.json    a line per engine: its file, then the rules
#include <cstdio>

#include "engine_check.hpp"
#include "json.hpp"

using namespace save_core;

namespace {

// As save_deploy.runtime.engine_check.Machine writes itself.
Machine machine_of(const Json& values) {
    Machine machine;
    machine.os = text(values, "os");
    machine.problem = text(values, "problem");
    const Json& libraries = object_of(values, "libraries");
    for (const auto& [name, version] : libraries.items())
        machine.libraries[name] = text(libraries, name.c_str());
    for (const Json& row : list(values, "gpus")) {
        const Json& capability = list(row, "compute_capability");
        machine.gpu = {text(row, "name"), capability[0].get<int>(), capability[1].get<int>()};
        break;  // the first one counts
    }
    return machine;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return SAVE_INPUT;
    try {
        const Manifest manifest = read_manifest(argv[1]);
        const Bytes bytes = read_file(argv[2], SAVE_DETAIL_DATA);
        const Machine machine = machine_of(parse_json(std::string(bytes.begin(), bytes.end())));
        for (const EngineEntry& entry : manifest.engines) {
            std::printf("%s", entry.file.c_str());
            for (const Refusal& refusal : engine_refusals(entry, argv[1], manifest, machine, false))
                std::printf(" %s", refusal.rule.c_str());
            std::printf("\n");
        }
        return SAVE_OK;
    } catch (const Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return error.status();
    }
}
