"""The Debian packages as an administrator meets them, on a Debian of their own."""
