"""The figures of a comparison, one file for each kind; every function makes `Chart`s from report.json.

    differences.py how far behind the best        finals.py     where each run ended
    curves.py      loss against tokens, seconds and FLOPs
    costs.py       quality against what it costs  positions.py  loss over the position in the row
    attention.py   what attention looks at        kernels.py    what filtering layers learnt
    load.py        how busy experts are

A task's own figures stand with the task; `blockyard.report.render` draws all of them.
"""
