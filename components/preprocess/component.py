"""The preprocess step as a Kubeflow component."""

from kfp import dsl

from hanflow import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def preprocess(
    task: str,
    source: str,
    validation_source: str,
    test_source: str,
    columns: dict,
    encoding: str,
    validation_ratio: float,
    test_ratio: float,
    seed: int,
    limit_rows: int,
    unicode: str,
    strip_html: bool,
    collapse_whitespace: bool,
    max_repeats: int,
    min_source_chars: int,
    max_source_chars: int,
    drop_short_sources: bool,
    drop_labels: list,
    deduplicate: bool,
    speaker_format: str,
    corpus: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Raw files to a clean, split corpus.

    Args:
        task: What is learnt.
        source: Raw data: a file, a folder or a glob (csv, tsv, txt, jsonl, parquet, AI-Hub json; each also .gz), or several
            with commas between.
        validation_source: Raw data of the validation split; empty: split off from source.
        test_source: Raw data of the test split; empty: split off from source.
        columns: Which raw column plays which role, e.g. {"source": "body"}; others are found by their usual names.
        encoding: Text encoding of raw files; auto: by byte-order mark, else UTF-8, else CP949.
        validation_ratio: Fraction of the distinct source texts that goes to validation.
        test_ratio: Fraction of the distinct source texts that goes to test.
        seed: Seed of the split.
        limit_rows: Read at most this many raw rows of each source (0: all).
        unicode: Unicode normalisation of all text: NFC, NFKC or none.
        strip_html: Remove tags, unescape entities.
        collapse_whitespace: Runs of spaces become one space, runs of new lines one new line.
        max_repeats: Shorten runs of one repeated character to this many (0: leave them).
        min_source_chars: Reject rows whose source text is shorter, in characters.
        max_source_chars: Reject rows whose source text is longer, in characters (0: no limit).
        drop_short_sources: Summarization: reject rows whose source is no longer than its summary.
        deduplicate: Reject exact duplicates of an earlier row.
        speaker_format: AI-Hub dialogues: what stands before each utterance; {n} counts speakers, {id} is the raw id.
        corpus: The corpus.
        metrics: Rows of each split, and rejected rows.
        report: Counts, lengths and reasons of rejection.

    Returns:
        URI of the corpus, for the next step.
    """
    arguments = locals()
    from hanflow.steps.preprocess import run
    from hanflow.steps.runner import in_pipeline

    return in_pipeline("preprocess", run, arguments, inputs=(), output="corpus")
