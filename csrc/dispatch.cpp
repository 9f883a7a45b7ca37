// Which loops run: the fastest that this machine has, unless NEURONLLM_SELECT_ISA names others.
#include <cstdlib>
#include <stdexcept>

#include "loops.h"
#include "select.h"

namespace neuronllm {
namespace {

struct InstructionSet {
    const char* name;
    const LoopTables* loops;
};

bool has_avx2() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
#else
    return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__)
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

const std::vector<InstructionSet>& available() {
    static const std::vector<InstructionSet> sets = [] {
        std::vector<InstructionSet> found = {{"scalar", nullptr}, {"portable", loops_portable()}};
        if (has_avx2() && loops_avx2()) found.push_back({"avx2", loops_avx2()});
        if (has_avx512() && loops_avx512()) found.push_back({"avx512", loops_avx512()});
        return found;
    }();
    return sets;
}

const InstructionSet& active() {
    const char* asked = std::getenv("NEURONLLM_SELECT_ISA");
    if (asked == nullptr || *asked == '\0') return available().back();
    std::string known;
    for (const InstructionSet& set : available()) {
        if (std::string(asked) == set.name) return set;
        known += (known.empty() ? "" : ", ") + std::string(set.name);
    }
    throw std::invalid_argument("NEURONLLM_SELECT_ISA=" + std::string(asked) + ": this machine has " + known);
}

}  // namespace

const LoopTables* active_loops() { return active().loops; }

std::string instruction_set() { return active().name; }

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const InstructionSet& set : available()) names.emplace_back(set.name);
    return names;
}

}  // namespace neuronllm
