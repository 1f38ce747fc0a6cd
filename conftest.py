"""Check every array shape that klimb's signatures promise while the tests run; let idle threads sleep."""

import os

from jaxtyping import install_import_hook

# Threads that spin while they wait slow down what runs beside them tenfold, such as the other half of the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# The halves share the cores, and most models here are too small for a second thread to pay.
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Models go to the first GPU by themselves; the default tests are those of the CPU on every machine.
if not os.environ.get("KLIMB_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
install_import_hook("klimb", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
