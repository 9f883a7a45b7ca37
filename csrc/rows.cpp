// Both ends of every row of a matrix: rows are shared out among the threads, and all memory is used again.
//
// A row is read once for the greatest and the least element of each block of 512 bytes. The k-th greatest of those is a
// proven bound: k blocks hold an element that reaches it. Only blocks that reach it are looked at again.
#include <algorithm>
#include <limits>

#include "collector.h"
#include "dtypes.h"
#include "loops.h"

namespace neuronllm {
namespace {

// The places that a row has no elements for.
template <typename Raw>
void fill_up(Raw* values, std::int64_t* indices, std::size_t size, std::size_t k, Key<Raw> infinity) {
    const Raw quiet_nan = static_cast<Raw>(infinity | (infinity & -infinity) >> 1);
    std::fill(values + size, values + k, quiet_nan);
    std::fill(indices + size, indices + k, -1);
}

template <typename Raw>
class RowSelector {
   public:
    RowSelector(const Loops<Raw>& loops, Key<Raw> infinity, const Options& options, std::size_t columns)
        : loops_(loops),
          infinity_(infinity),
          options_(options),
          columns_(columns),
          collector_(loops, infinity, static_cast<std::size_t>(options.largest),
                     static_cast<std::size_t>(options.smallest), columns, 1) {
        options_.threads = 1;
        options_.check = [] {};
    }

    void select(const View& row, std::size_t number, const RowsOutput& output) {
        Scanner<Raw>& scanner = collector_.scanner(0);
        std::size_t n_nan;
        if (!by_blocks(row, scanner, &n_nan)) {
            const Key<Raw> everything = static_cast<Key<Raw>>(~infinity_);
            collector_.collect(row, 0, everything, everything, options_);
            n_nan = collector_.n_nan();
        }
        output.n_nan[number] = static_cast<std::int64_t>(n_nan);
        write(scanner.largest, static_cast<std::size_t>(options_.largest), number, output.largest_values,
              output.largest_indices);
        write(scanner.smallest, static_cast<std::size_t>(options_.smallest), number, output.smallest_values,
              output.smallest_indices);
    }

   private:
    // False where the extremes of the blocks say too little: few blocks, or elements that are not side by side.
    bool by_blocks(const View& row, Scanner<Raw>& scanner, std::size_t* n_nan) {
        const std::size_t n_blocks = columns_ / kGroup<Raw>;
        const std::size_t k = static_cast<std::size_t>(std::max(options_.largest, options_.smallest));
        Reader<Raw> reader(row);
        if (!reader.is_direct() || n_blocks < 16 || n_blocks < 2 * k) return false;
        const Raw* data = reader.chunk(0, 0);
        greatest_.reserve(n_blocks);
        least_.reserve(n_blocks);
        scores_.reserve(n_blocks);
        *n_nan = loops_.block_extremes(data, n_blocks, infinity_, greatest_.data(), least_.data());
        scanner.restart(bound(scanner.largest, greatest_.data(), n_blocks),
                        bound(scanner.smallest, least_.data(), n_blocks));
        scanner.update();
        const Bounds<Raw> bounds = bounds_of(scanner.largest, scanner.smallest);  // what cuts raise later is not needed
        for (std::size_t block = 0; block < n_blocks; ++block) {
            if (greatest_[block] < bounds.high && least_[block] > bounds.low) continue;
            const std::size_t first = block * kGroup<Raw>;
            scanner.take(data + first, kGroup<Raw>, static_cast<std::int64_t>(first));
        }
        scanner.n_nan = 0;  // those of the blocks are counted already
        const std::size_t done = n_blocks * kGroup<Raw>;
        if (done < columns_) scanner.take(data + done, columns_ - done, static_cast<std::int64_t>(done));
        *n_nan += scanner.n_nan;
        return true;
    }

    // The k-th best of the blocks' best. A block of NaNs only has none, and takes no part.
    Key<Raw> bound(const Candidates<Raw>& end, const Key<Raw>* orders, std::size_t n) {
        if (end.k() == 0) return end.nothing();
        for (std::size_t i = 0; i < n; ++i) {
            const Key<Raw> key = static_cast<Key<Raw>>(orders[i] + (orders[i] == -1));
            scores_[i] = static_cast<Key<Raw>>(key ^ end.flip());
        }
        return std::max(kth_greatest(scores_.data(), n, end.k()), end.everything());
    }

    void write(Candidates<Raw>& end, std::size_t k, std::size_t number, void* all_values, std::int64_t* all_indices) {
        end.cut();
        Raw* values = static_cast<Raw*>(all_values) + number * k;
        std::int64_t* indices = all_indices + number * k;
        if (options_.sorted) {
            sort_by_score(end.values(), end.indices(), end.size(), end.flip(), options_.check, values, indices);
        } else if (end.size() > 0) {
            std::memcpy(values, end.values(), end.size() * sizeof(Raw));
            std::memcpy(indices, end.indices(), end.size() * sizeof(std::int64_t));
        }
        fill_up(values, indices, end.size(), k, infinity_);
    }

    const Loops<Raw>& loops_;
    Key<Raw> infinity_;
    Options options_;
    std::size_t columns_;
    Collector<Raw> collector_;
    Buffer<Key<Raw>> greatest_, least_, scores_;
};

template <typename Raw>
void write_scalar(const Selected& selected, std::size_t k, std::size_t number, Key<Raw> infinity, void* all_values,
                  std::int64_t* all_indices) {
    Raw* values = static_cast<Raw*>(all_values) + number * k;
    std::int64_t* indices = all_indices + number * k;
    if (selected.size > 0) {
        std::memcpy(values, selected.values.data(), selected.size * sizeof(Raw));
        std::memcpy(indices, selected.indices.data(), selected.size * sizeof(std::int64_t));
    }
    fill_up(values, indices, selected.size, k, infinity);
}

}  // namespace

void extremes_rows(const RowsView& view, const Options& asked, const RowsOutput& output) {
    Options options = asked;
    options.largest = std::clamp<std::int64_t>(asked.largest, 0, view.columns);
    options.smallest = std::clamp<std::int64_t>(asked.smallest, 0, view.columns);
    options.threads =
        static_cast<int>(std::clamp<std::int64_t>(asked.threads, 1, std::max<std::int64_t>(view.rows, 1)));
    const LoopTables* loops = active_loops();
    with_bits(view.dtype, [&](auto raw, auto infinity) {
        using Raw = decltype(raw);
        std::vector<std::unique_ptr<RowSelector<Raw>>> selectors(static_cast<std::size_t>(options.threads));
        // Few rows a block: the last ones are to be shared out, too.
        const std::size_t rows = static_cast<std::size_t>(view.rows);
        const std::size_t row_bytes = static_cast<std::size_t>(view.columns) * sizeof(Raw) + 1;
        const std::size_t at_once =
            std::max<std::size_t>(1, std::min(options.block_bytes / row_bytes, rows / (4 * selectors.size())));
        for_each_block(
            (rows + at_once - 1) / at_once, options.threads, options.check, [&](int thread, std::size_t block) {
                auto& selector = selectors[static_cast<std::size_t>(thread)];
                for (std::size_t row = block * at_once; row < std::min(rows, (block + 1) * at_once); ++row) {
                    const char* data =
                        static_cast<const char*>(view.data) + static_cast<std::int64_t>(row) * view.row_stride;
                    const View one{data, view.dtype, view.columns, view.column_stride};
                    if (loops == nullptr) {
                        const Extremes found = extremes_scalar(one, options);
                        output.n_nan[row] = found.n_nan;
                        write_scalar<Raw>(found.largest, static_cast<std::size_t>(options.largest), row, infinity,
                                          output.largest_values, output.largest_indices);
                        write_scalar<Raw>(found.smallest, static_cast<std::size_t>(options.smallest), row, infinity,
                                          output.smallest_values, output.smallest_indices);
                        continue;
                    }
                    if (!selector) {
                        selector = std::make_unique<RowSelector<Raw>>(loops_of<Raw>(*loops), infinity, options,
                                                                      static_cast<std::size_t>(view.columns));
                    }
                    selector->select(one, row, output);
                }
            });
    });
}

}  // namespace neuronllm
