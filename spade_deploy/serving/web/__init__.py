"""The paint page without a server: a folder for any static host; the browser runs the model.

request.py           what `spade export` is asked of it
onnxruntime_web.py   the npm package that runs the model: found, fetched, checked
folder.py            artifact -> folder
sw.js                the service worker: work offline, and the headers that threads want
"""
