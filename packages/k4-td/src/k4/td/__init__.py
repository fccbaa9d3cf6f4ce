"""Trading: signed order entry, user-data streams, an order state that is never guessed."""
