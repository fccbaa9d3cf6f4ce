"""Records, shared-memory rings, links and supervision shared by every K4 package."""
