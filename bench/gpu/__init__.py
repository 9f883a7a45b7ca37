"""One command for a machine with a GPU that is paid by the minute: `python tools/gpu_hour.py`.

`stages.py` lists what is done, in order of worth, with estimated times (`estimates.py`). `hour.py` keeps to a budget:
it runs each stage in a process of its own (`worker.py`), which runs the stage's cases one by one and writes down what
becomes of each at once, so that a crash or a hang costs one case. `folder.py` is what is left behind, `diagnosis.py`
what is said of a failure, `page.py` makes docs/gpu.md. The others are the stages: each has a function `cases(setting)`.
"""
