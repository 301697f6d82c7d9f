"""What makes the Debian packages; the files beside it go into them."""
