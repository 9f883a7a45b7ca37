// Python's view of the selection: checks the buffer, lets go of the GIL, hands NumPy arrays back.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "select.h"

namespace py = pybind11;

namespace {

template <typename T>
py::array_t<T> to_array(const std::vector<T>& values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());  // copies
}

py::tuple extremes(const py::buffer& x, std::int64_t largest, std::int64_t smallest) {
    const py::buffer_info view = x.request();
    if (!view.item_type_is_equivalent_to<float>() || view.ndim != 1) {
        throw py::type_error("x must be a one-dimensional float32 buffer, not " + std::to_string(view.ndim) +
                             " dimensions of format '" + view.format + "'");
    }
    if (view.size > 1 && view.strides[0] != view.itemsize) throw py::value_error("x must be contiguous: copy it first");
    if (largest < 0 || smallest < 0) throw py::value_error("largest and smallest must not be negative");
    neuronllm::Extremes result;
    {
        py::gil_scoped_release release;
        result = neuronllm::extremes_scalar(static_cast<const float*>(view.ptr), view.size, largest, smallest);
    }
    return py::make_tuple(to_array(result.largest.values), to_array(result.largest.indices),
                          to_array(result.smallest.values), to_array(result.smallest.indices), result.n_nan,
                          result.n_valid);
}

}  // namespace

PYBIND11_MODULE(_select, module) {
    module.doc() = "The largest and smallest elements of an array (see neuronllm.select)";
    module.def("extremes", &extremes, py::arg("x"), py::arg("largest"), py::arg("smallest"),
               "(largest values, their int64 indices, smallest values, their indices, n_nan, n_valid) of a contiguous\n"
               "one-dimensional float32 buffer. Order: value, then lowest index; NaN is counted and never selected.");
}
