// Built with what `added` holds: the published module lacks a file of the executor's on Linux.
module hanflow.test/argo

go 1.26.0

require github.com/argoproj/argo-workflows/v4 v4.0.5
