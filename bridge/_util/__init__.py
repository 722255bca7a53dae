"""What every room may use, and nobody outside: files, progress bars, checks of arguments. It may change at any time."""
