"""One model on several GPUs: the engine is rank 0, each further rank a process of its own."""
