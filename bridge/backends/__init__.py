"""What a backend is, which ones there are, and how one in another Python is reached."""

from bridge._util.lazy import lazily

__getattr__, __dir__ = lazily(__name__)
