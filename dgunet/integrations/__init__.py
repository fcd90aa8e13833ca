"""Our networks in other libraries. Each module here imports one of them, and nothing else does."""
