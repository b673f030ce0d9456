"""Batch prediction as a Kubeflow component: for pipelines of one's own, and for a bundle that is run every night."""

from kfp import dsl

from hanflow import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def predict(
    bundle: str,
    input: str,
    predictions: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    column: str = "",
    format: str = "csv",
    with_input: bool = False,
) -> str:
    """Predict every text of a file, a folder or a glob with an exported bundle: one row out for every row in, in order.

    Args:
        bundle: URI of the bundle.
        input: URI of the texts: csv, tsv, jsonl, parquet, AI-Hub json or one text a line; each also .gz.
        predictions: The folder with `predictions.FORMAT`.
        metrics: Rows, empty texts, texts that were cut, rows a second.
        column: Column of the texts; empty: by its usual names.
        format: csv, tsv, jsonl or lines.
        with_input: Write the input texts, too.

    Returns:
        URI of the predictions.
    """
    from pathlib import Path

    from hanflow.progress import setup_logging
    from hanflow.serving.bundle import open_bundle
    from hanflow.serving.inputs import Request
    from hanflow.serving.predict import run

    setup_logging()
    folder = Path(predictions.path)
    folder.mkdir(parents=True, exist_ok=True)
    request = Request(
        input=input,
        output=str(folder / f"predictions.{format.replace('lines', 'txt')}"),
        column=column or None,
        output_format=format,
        with_input=with_input,
    )
    summary = run(open_bundle(bundle), request)
    for name, value in (("rows", summary.rows), ("empty", summary.empty), ("cut", summary.cut)):
        metrics.log_metric(name, value)
    metrics.log_metric("rows_per_second", round(summary.rows / summary.seconds, 2) if summary.seconds else 0.0)
    return predictions.uri
