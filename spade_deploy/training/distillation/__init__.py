"""Training a smaller generator, a student, to make the images of a larger one, its teacher.

A distillation is a training with a teacher beside the losses: loop, steps, records and checkpoints are those of every
run.
"""
