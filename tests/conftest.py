from __future__ import annotations

import hypothesis

# Examples are few, the same in every run, and take what time they take.
hypothesis.settings.register_profile(
    "house", derandomize=True, deadline=None, max_examples=25, print_blob=True
)
hypothesis.settings.load_profile("house")
