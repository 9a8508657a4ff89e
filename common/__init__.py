"""What the four papers share.  Nothing here knows a paper: the papers import `common`, never the other way."""
