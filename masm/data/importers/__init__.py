"""Where faces come from: one file per source of real photographs, and one per layout that can be imported."""
