"""Serve artifacts over HTTP: a label map goes in, a photo comes out. No PyTorch is in the process.

request.py    what `spade serve` is asked
models.py     the artifacts that are served, each in its runtime
runner.py     the queue in front of the runtimes: order, batches, deadlines
maps.py       the bytes and JSON of a request -> inputs, with limits before anything is decoded; forms.py those of forms
memory.py     what clients may fill together; protocol.py counts it, and bears slow, endless and broken connections
pictures.py   pixels -> PNG, JPEG or WebP
app.py        the HTTP interface; routes.py and live.py its endpoints, problems.py its errors
run.py        the processes that listen
client.py     a client in Python, which needs nothing of this package
"""
