"""Check every array shape that klimb's signatures promise while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("klimb", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
