"""The page for those who come from other packages leaves no option of theirs out."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "migration.md").read_text("utf-8")
# What the commands and constructors of each package take, as read in its source. By the
# heading under which the page has a row for each.
TRAINER = """
    accelerator strategy devices num_nodes precision logger callbacks fast_dev_run
    max_epochs min_epochs max_steps min_steps max_time limit_train_batches
    limit_val_batches limit_test_batches limit_predict_batches overfit_batches
    val_check_interval check_val_every_n_epoch num_sanity_val_steps log_every_n_steps
    enable_checkpointing enable_progress_bar enable_model_summary
    accumulate_grad_batches gradient_clip_val gradient_clip_algorithm deterministic
    benchmark inference_mode use_distributed_sampler profiler detect_anomaly barebones
    plugins sync_batchnorm reload_dataloaders_every_n_epochs default_root_dir
    enable_autolog_hparams model_registry
"""
DATASETS = """
    root category name normal_dir abnormal_dir normal_test_dir mask_dir
    normal_split_ratio extensions train_batch_size eval_batch_size num_workers
    train_augmentations val_augmentations test_augmentations augmentations
    test_split_mode test_split_ratio val_split_mode val_split_ratio seed path transform
    image_size
"""
OPTIONS = {
    "patchcore-inspection/Command `run_patchcore.py`": """
        results_path --gpu --seed --log_group --log_project --save_segmentation_images
        --save_patchcore_model
    """,
    "patchcore-inspection/`patch_core`": """
        --backbone_names -b --layers_to_extract_from -le --pretrain_embed_dimension
        --target_embed_dimension --preprocessing --aggregation --anomaly_scorer_num_nn
        --patchsize --patchscore --patchoverlap --patchsize_aggregate -pa
        --faiss_on_gpu --faiss_num_workers
    """,
    "patchcore-inspection/`sampler`": "name --percentage -p",
    "patchcore-inspection/`dataset`": """
        name data_path --subdatasets -d --train_val_split --batch_size --num_workers
        --resize --imagesize --augment
    """,
    "patchcore-inspection/Command `load_and_evaluate_patchcore.py`": """
        --patch_core_paths -p
    """,
    "patchcore-inspection/Constructors": """
        PatchCore.device PatchCore.load.backbone PatchCore.load.layers_to_extract_from
        PatchCore.load.device PatchCore.load.input_shape
        PatchCore.load.pretrain_embed_dimension PatchCore.load.target_embed_dimension
        PatchCore.load.patchsize PatchCore.load.patchstride
        PatchCore.load.anomaly_score_num_nn PatchCore.load.featuresampler
        PatchCore.load.nn_method GreedyCoresetSampler.percentage
        GreedyCoresetSampler.device
        GreedyCoresetSampler.dimension_to_project_features_to
        ApproximateGreedyCoresetSampler.number_of_starting_points
        RandomSampler.percentage FaissNN.on_gpu FaissNN.num_workers ApproximateFaissNN
        RescaleSegmentor.target_size RescaleSegmentor.smoothing RescaleSegmentor.device
        NearestNeighbourScorer.n_nearest_neighbours NearestNeighbourScorer.nn_method
        NetworkFeatureAggregator.backbone
        NetworkFeatureAggregator.layers_to_extract_from NetworkFeatureAggregator.device
        Preprocessing.input_dims Preprocessing.output_dim Aggregator.target_dim
        PatchMaker.patchsize PatchMaker.stride MVTecDataset.source
        MVTecDataset.classname MVTecDataset.resize MVTecDataset.imagesize
        MVTecDataset.split MVTecDataset.train_val_split backbones.load.name
        PatchCore.save_to_path.save_path PatchCore.save_to_path.prepend
        PatchCore.load_from_path.load_path PatchCore.load_from_path.device
        PatchCore.load_from_path.nn_method PatchCore.load_from_path.prepend
    """,
    "anomalib/`Patchcore`": """
        backbone layers pre_trained coreset_sampling_ratio num_neighbors precision
        pre_processor post_processor evaluator visualizer
    """,
    "anomalib/Components: `PatchcoreModel`, `KCenterGreedy`, `AnomalyMapGenerator`": """
        PatchcoreModel.layers PatchcoreModel.backbone PatchcoreModel.pre_trained
        PatchcoreModel.num_neighbors KCenterGreedy.embedding
        KCenterGreedy.sampling_ratio AnomalyMapGenerator.sigma
    """,
    "anomalib/`MEBinPostProcessor`": "sample_rate min_interval_len erode kernel_size",
    "anomalib/`Patchcore.configure_pre_processor`, `PreProcessor`": """
        image_size center_crop_size transform
    """,
    "anomalib/`PostProcessor`": """
        enable_normalization enable_thresholding enable_threshold_matching
        image_sensitivity pixel_sensitivity
    """,
    "anomalib/`Evaluator`": "val_metrics test_metrics compute_on_cpu",
    "anomalib/`ImageVisualizer`": """
        fields overlay_fields field_size fields_config overlay_fields_config text_config
        output_dir
    """,
    "anomalib/`TilerConfigurationCallback`": """
        enable tile_size stride remove_border_count mode
    """,
    "anomalib/`MVTecAD`, `Folder`, `PredictDataset`": DATASETS,
    "anomalib/`Engine`": """
        callbacks logger default_root_dir model train_dataloaders val_dataloaders
        test_dataloaders dataloaders datamodule dataset data_path ckpt_path verbose
        return_predictions
    """,
    "anomalib/`Engine.export`": """
        export_type export_root model_file_name input_size compression_type metric
        max_drop ov_args ov_kwargs onnx_kwargs
    """,
    "anomalib/`TorchInferencer`, `OpenVINOInferencer`": "path device config",
    "anomalib/Lightning's `Trainer`, through `Engine(**kwargs)` or `--trainer.*`": (
        TRAINER
    ),
    "anomalib/Command `anomalib`": """
        -c --config --model.* --data.* --trainer.* --optimizer --lr_scheduler
        --seed_everything --logging.log_graph --default_root_dir --ckpt_path -v
        --verbose --option
    """,
    "ind_knn_ad/": """
        method --dataset --backbone PatchCore.f_coreset PatchCore.backbone_name
        PatchCore.coreset_eps KNNExtractor.backbone_name KNNExtractor.out_indices
        KNNExtractor.pool_last
        MVTecDataset.cls MVTecDataset.size get_coreset_idx_randomp.n
        get_coreset_idx_randomp.eps SPADE.k SPADE.backbone_name PaDiM.d_reduced
        PaDiM.backbone_name
    """,
    "pyod/": """
        KNN.contamination KNN.n_neighbors KNN.method KNN.radius KNN.algorithm
        KNN.leaf_size KNN.metric KNN.p KNN.metric_params KNN.n_jobs LOF.n_neighbors
        LOF.algorithm LOF.leaf_size LOF.metric LOF.p LOF.metric_params
        LOF.contamination LOF.n_jobs LOF.novelty
    """,
}
COMMANDS = "install fit validate test train predict export benchmark"


def rows(section: str) -> dict[str, list[str]]:
    """Return the cells beside each option in the table of a section."""
    package, heading = section.split("/", 1)
    text = re.split(r"^## ", PAGE, flags=re.M)
    text = next(part for part in text if part.startswith(f"{package}\n"))
    if heading:
        parts = re.split(r"^### ", text, flags=re.M)
        text = next(part for part in parts if part.startswith(f"{heading}\n"))
    found = {}
    for line in re.findall(r"^\| (`.*) \|$", text, re.M):
        first, *others = re.split(r" \| ", line)
        for name in re.findall(r"`([^`]+)`", first):
            found[re.split(r"[ =]", name)[0]] = others
            found[name] = others
    return found


@pytest.mark.parametrize("section", OPTIONS)
def test_every_option_has_its_row(section):
    found = rows(section)
    missing = [name for name in OPTIONS[section].split() if name not in found]
    assert missing == []


def test_every_command_of_anomalib_has_its_row():
    found = rows("anomalib/Command `anomalib`")
    assert {f"anomalib {name}" for name in COMMANDS.split()} <= set(found)


@pytest.mark.parametrize("section", OPTIONS)
def test_every_row_says_something(section):
    for name, cells in rows(section).items():
        here, remark = cells
        assert remark.endswith("."), name
        if here == "–":
            assert remark.startswith("Not offered"), name
