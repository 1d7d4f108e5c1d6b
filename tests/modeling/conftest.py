"""The models that tests build, known also where one file of tests is run alone."""

import hicl_d2.modeling.models  # noqa: F401 - registers models
