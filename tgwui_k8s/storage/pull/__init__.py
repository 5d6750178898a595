"""Fetch a model into the model directory: resumable, parallel, checked, and never half there.

    source ──► snapshot: paths, sizes, checksums      hub, s3, web
                  │ selection                          which of the files
                  ▼
    .pull-NAME/   the files, sparse, and a journal     workspace
                  │ ranges of many files at once       download, ranges
                  │ every file checked when it is whole   checksum
                  ▼ one rename
    NAME/         the model

One process works on a name at a time (`lock`); what a killed one has fetched is not fetched again.
"""
