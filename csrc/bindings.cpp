// Python's view of the selection: checks the buffers, lets go of the GIL, hands NumPy arrays back.
//
// A dtype travels by name beside the buffer, because NumPy has no bfloat16: the buffer may be of any format of the
// right size, and values come back as unsigned integers of that size.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <string>

#include "select.h"

namespace py = pybind11;
using namespace neuronllm;

namespace {

// The Python error is set already.
struct Interrupted {};

// Looks for Ctrl-C ten times a second. Python runs signal handlers in its main thread only.
Check check_for_signals() {
    using Clock = std::chrono::steady_clock;
    return [next = Clock::now() + std::chrono::milliseconds(100)]() mutable {
        if (Clock::now() < next) return;
        next = Clock::now() + std::chrono::milliseconds(100);
        const py::gil_scoped_acquire acquire;
        if (PyErr_CheckSignals() != 0) throw Interrupted();
    };
}

template <typename Work>
void without_gil(const Work& work) {
    try {
        const py::gil_scoped_release release;
        work();
    } catch (const Interrupted&) {
        throw py::error_already_set();
    }
}

DType dtype_of(const std::string& name) {
    if (name == "float16") return DType::f16;
    if (name == "bfloat16") return DType::bf16;
    if (name == "float32") return DType::f32;
    if (name == "float64") return DType::f64;
    throw py::type_error("dtype " + name + ": known are float16, bfloat16, float32 and float64");
}

py::buffer_info request(const py::buffer& x, DType dtype, py::ssize_t ndim) {
    py::buffer_info info = x.request();
    if (info.ndim != ndim || info.itemsize != static_cast<py::ssize_t>(size_of(dtype))) {
        throw py::type_error("x must have " + std::to_string(ndim) + " dimensions and items of " +
                             std::to_string(size_of(dtype)) + " bytes, not " + std::to_string(info.ndim) + " and " +
                             std::to_string(info.itemsize));
    }
    return info;
}

View view_of(const py::buffer_info& info, DType dtype) {
    return {info.ptr, dtype, info.shape[0], info.size > 1 ? info.strides[0] : info.itemsize};
}

Options options_of(std::int64_t largest, std::int64_t smallest, bool sorted, int threads) {
    if (largest < 0 || smallest < 0) throw py::value_error("largest and smallest must not be negative");
    if (threads < 1) throw py::value_error("threads must be at least 1");
    Options options;
    options.largest = largest;
    options.smallest = smallest;
    options.sorted = sorted;
    options.threads = threads;
    options.check = check_for_signals();
    return options;
}

py::dtype bits_of(DType dtype) {
    switch (size_of(dtype)) {
        case 2:
            return py::dtype::of<std::uint16_t>();
        case 4:
            return py::dtype::of<std::uint32_t>();
        default:
            return py::dtype::of<std::uint64_t>();
    }
}

// An array over memory that is freed with it.
template <typename T>
py::array own(Buffer<T>& buffer, const py::dtype& dtype, std::size_t size) {
    T* data = buffer.release();
    const py::capsule owner(data, [](void* memory) { std::free(memory); });
    return py::array(dtype, {static_cast<py::ssize_t>(size)}, {dtype.itemsize()}, data, owner);
}

py::tuple to_python(Extremes& found, DType dtype) {
    const py::dtype bits = bits_of(dtype), index = py::dtype::of<std::int64_t>();
    return py::make_tuple(own(found.largest.values, bits, found.largest.size),
                          own(found.largest.indices, index, found.largest.size),
                          own(found.smallest.values, bits, found.smallest.size),
                          own(found.smallest.indices, index, found.smallest.size), found.n_nan, found.n_valid);
}

py::tuple py_extremes(const py::buffer& x, const std::string& dtype_name, std::int64_t largest, std::int64_t smallest,
                      bool sorted, int threads, std::size_t block_bytes) {
    const DType dtype = dtype_of(dtype_name);
    const py::buffer_info info = request(x, dtype, 1);
    Options options = options_of(largest, smallest, sorted, threads);
    options.block_bytes = block_bytes;
    Extremes found;
    without_gil([&] { found = extremes(view_of(info, dtype), options); });
    return to_python(found, dtype);
}

py::tuple py_extremes_rows(const py::buffer& x, const std::string& dtype_name, std::int64_t largest,
                           std::int64_t smallest, bool sorted, int threads) {
    const DType dtype = dtype_of(dtype_name);
    const py::buffer_info info = request(x, dtype, 2);
    const py::ssize_t rows = info.shape[0], columns = info.shape[1];
    const Options options = options_of(largest, smallest, sorted, threads);
    const py::ssize_t n_largest = std::min<py::ssize_t>(largest, columns);
    const py::ssize_t n_smallest = std::min<py::ssize_t>(smallest, columns);
    const py::dtype bits = bits_of(dtype);
    py::array high(bits, {rows, n_largest}), low(bits, {rows, n_smallest});
    py::array_t<std::int64_t> high_at({rows, n_largest}), low_at({rows, n_smallest}), n_nan(rows);
    const RowsView view{info.ptr, dtype, rows, columns, info.strides[0], columns > 1 ? info.strides[1] : info.itemsize};
    const RowsOutput output{high.mutable_data(), high_at.mutable_data(), low.mutable_data(), low_at.mutable_data(),
                            n_nan.mutable_data()};
    without_gil([&] { extremes_rows(view, options, output); });
    return py::make_tuple(high, high_at, low, low_at, n_nan);
}

void push(Stream& stream, const py::buffer& x, std::int64_t base, int threads) {
    const py::buffer_info info = request(x, stream.dtype(), 1);
    const Options options = options_of(0, 0, true, threads);
    without_gil([&] { stream.push(view_of(info, stream.dtype()), base, options); });
}

}  // namespace

PYBIND11_MODULE(_select, module) {
    module.doc() = "The largest and smallest elements of arrays (see neuronllm.select)";
    module.def("extremes", &py_extremes, py::arg("x"), py::arg("dtype"), py::arg("largest"), py::arg("smallest"),
               py::arg("sorted") = true, py::arg("threads") = 1, py::arg("block_bytes") = Options().block_bytes,
               "(largest values, their int64 indices, smallest values, their indices, n_nan, n_valid) of a\n"
               "one-dimensional buffer. Order: value, then lowest index; NaN is counted and never selected.");
    module.def("extremes_rows", &py_extremes_rows, py::arg("x"), py::arg("dtype"), py::arg("largest"),
               py::arg("smallest"), py::arg("sorted") = true, py::arg("threads") = 1,
               "The same for every row of a two-dimensional buffer, filled up with NaN and index -1; n_nan by row.");
    module.def("instruction_set", &instruction_set, "What runs: NEURONLLM_SELECT_ISA, or the fastest.");
    module.def("instruction_sets", &instruction_sets, "What was built and what this machine has, slowest first.");
    py::class_<Stream>(module, "Stream", "The extremes of an array that comes in parts, in any order.")
        .def(py::init([](const std::string& dtype, std::int64_t largest, std::int64_t smallest) {
                 options_of(largest, smallest, true, 1);
                 return Stream(dtype_of(dtype), largest, smallest);
             }),
             py::arg("dtype"), py::arg("largest"), py::arg("smallest"))
        .def("push", &push, py::arg("x"), py::arg("base"), py::arg("threads") = 1)
        .def("merge", &Stream::merge, py::arg("other"))
        .def(
            "result",
            [](const Stream& stream, bool sorted) {
                Extremes found = stream.result(sorted);
                return to_python(found, stream.dtype());
            },
            py::arg("sorted") = true);
}
