"""The maker of cases/."""

import engine.models  # noqa: F401  it makes the modules in tests/ known, which deepseek_v4.py needs
