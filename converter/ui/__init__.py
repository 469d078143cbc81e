"""The page of `convert ui`: a server on loopback that shows models, plans and runs what the command line runs.

`roots` says what may be read and written, `gate` who may ask, `jobs` runs what takes its time, `routes` is the table of
what can be asked, `server` carries it over HTTP. The page itself is `page.html`, `ui.css` and `ui.js`.
"""
