"""Reading and writing files so that nothing half-written is picked up and nothing of others can do harm."""
