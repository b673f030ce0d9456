module hanflow.test/jobset

go 1.26.0

// Too old for hanflow: it does not know onJobFailureMessagePatterns.
require sigs.k8s.io/jobset v0.8.0
