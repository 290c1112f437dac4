"""Which tests take long: `make check` leaves out what compiles, `make test` what is slow.

What takes hours is marked where it stands, `weekly`: the deepest networks, every layout.
"""

# Whoever takes one of these looks at a run.
FIXTURES = {'finished', 'finished_other', 'cluster'}
# Folders and files below tests/, and the tests of other files.
COMPILING = (
    'benchmarks/test_programs.py',
    'commands/test_main.py::test_train_in_a_relative_workdir_then_evaluate_and_report',
    'commands/test_main.py::test_signals_save_and_the_same_command_resumes',
    'commands/test_main.py::test_killed_three_times_ends_as_the_uninterrupted_run',
    'commands/test_main.py::test_folder_of_23_validation_images_counts_23',
    'commands/test_main.py::test_unreadable_training_file_ends_the_run_with_its_name_and_exit_1',
    'data/test_images.py::test_training_on_all_kinds_reaches_its_end',
    'docs/test_extend.py',
    'docs/test_notebooks.py::test_notebook_runs_anywhere_quietly_and_leaves_nothing',
    'docs/test_notebooks.py::test_failing_cell_fails_and_the_kernel_is_this_python',
    'docs/test_readme.py::test_commands_work_as_they_are_written',
    'explaining/',
    'exporting/test_aging.py',
    'exporting/test_export.py',
    'exporting/test_tflite.py',
    'exporting/test_web.py',
    'inference/test_export_function.py',
    'models/test_intermediates.py',
    'models/test_nnx_network.py',
    'models/test_parity.py',
    'models/test_registry.py',
    'ops/test_remat.py',
    'planning/test_estimate.py',
    'planning/test_timing.py::test_every_number_is_finite_and_positive',
    'planning/test_timing.py::test_facts_of_the_run_are_its_own',
    'planning/test_timing.py::test_the_loop_that_is_timed_takes_the_steps_of_the_run',
    'planning/test_timing.py::test_every_layout_and_ten_crops_can_be_measured',
    'planning/test_timing.py::test_command_writes_what_it_prints_and_nothing_else',
    'properties/',
    'reporting/test_report.py::test_a_browser_shows_it_all_and_asks_for_nothing',
    'sweeping/test_run.py',
    'system/test_compilation_cache.py::test_a_run_finds_the_programs_of_the_one_before',
    'training/test_checkpoints.py',
    'training/test_finetuning.py',
    'training/test_loop.py',
    'training/test_processes.py',
    'training/test_run_record.py::test_the_record_of_an_interrupted_run_has_both_parts',
    'training/test_slurm.py',
    'weights/',
)
# What `make test` has no room for in nine minutes. Of each property, a cheaper case stays there.
SLOW = (
    'benchmarks/test_programs.py::test_a_step_of_the_example_is_sgd',
    'commands/test_main.py::test_killed_three_times_ends_as_the_uninterrupted_run',
    'commands/test_main.py::test_train_in_a_relative_workdir_then_evaluate_and_report',
    'docs/test_extend.py::test_a_sweep_varies_an_extensions_option',
    'docs/test_extend.py::test_what_an_extension_adds_is_found_by_every_command',
    'docs/test_notebooks.py::test_notebook_runs_anywhere_quietly_and_leaves_nothing[ablation',
    'docs/test_notebooks.py::test_notebook_runs_anywhere_quietly_and_leaves_nothing[architectures',
    'docs/test_notebooks.py::test_notebook_runs_anywhere_quietly_and_leaves_nothing[fine_tune',
    'docs/test_readme.py::test_commands_work_as_they_are_written[docs/',
    'explaining/test_methods.py::test_every_method_draws_a_picture[densenet',
    'explaining/test_methods.py::test_files_layers_and_classes_may_be_named[densenet',
    'explaining/test_methods.py::test_maps_are_those_of_the_predictions_and_of_an_image_alone[alexnet',
    'explaining/test_methods.py::test_maps_are_those_of_the_predictions_and_of_an_image_alone[densenet',
    'explaining/test_planted.py',
    'explaining/test_signal_propagation.py::test_gradients_are_those_of_each_layer_by_itself[densenet',
    'explaining/test_signal_propagation.py::test_gradients_explode',
    'explaining/test_signal_propagation.py::test_signals_are_those_of_training[alexnet',
    'explaining/test_signal_propagation.py::test_signals_are_those_of_training[vgg',
    'exporting/test_export.py::test_exported_network_predicts_as_the_network[alexnet_',
    'exporting/test_export.py::test_exported_network_predicts_as_the_network[densenet121',
    'exporting/test_export.py::test_exported_network_predicts_as_the_network[densenet_40',
    'exporting/test_export.py::test_exported_network_predicts_as_the_network[resnet18',
    'exporting/test_export.py::test_exported_network_predicts_as_the_network[resnet50-',
    'exporting/test_export.py::test_exported_network_predicts_as_the_network[resnext50',
    'exporting/test_export.py::test_exported_network_predicts_as_the_network[vgg16',
    'inference/test_predictions.py::test_two_processes_predict_as_one',
    'models/test_nnx_network.py::test_plain_loop_has_the_losses_and_weights_of_the_linen_loop[alexnet',
    'models/test_nnx_network.py::test_plain_loop_has_the_losses_and_weights_of_the_linen_loop[densenet',
    'models/test_nnx_network.py::test_whole_networks_compute_what_linen_computes_under_the_same_names',
    'models/test_parity.py::test_logits_are_the_reference_implementations[densenet121',
    'models/test_parity.py::test_logits_are_the_reference_implementations[resnet50',
    'ops/test_remat.py::test_gradients_and_statistics_are_those_without[alexnet_bn',
    'ops/test_remat.py::test_gradients_and_statistics_are_those_without[densenet121',
    'ops/test_remat.py::test_gradients_and_statistics_are_those_without[densenet_40',
    'ops/test_remat.py::test_gradients_and_statistics_are_those_without[resnet50',
    'ops/test_remat.py::test_gradients_and_statistics_are_those_without[vgg16',
    'planning/test_estimate.py::test_every_experiment_trains_two_steps_of_its_own_shape',
    'planning/test_timing.py::test_every_layout_and_ten_crops_can_be_measured',
    'properties/test_collectives.py',
    'properties/test_layouts.py::test_every_layout_trains_alike[alexnet',
    'properties/test_layouts.py::test_every_layout_trains_alike[densenet',
    'sweeping/test_run.py::test_a_run_ends_with_the_process_that_has_started_it[SIGHUP',
    'sweeping/test_run.py::test_a_sweep_that_was_interrupted_resumes',
    'sweeping/test_run.py::test_slurm_',
    'system/test_compilation_cache.py::test_a_run_finds_the_programs_of_the_one_before',
    'training/test_processes.py::test_a_signal_to_one_stops_all_at_one_step',
    'training/test_processes.py::test_saved_on_eight_devices_and_continued_on_fewer',
    'training/test_processes.py::test_the_death_of_one_ends_the_other_with_a_sentence',
    'training/test_slurm.py',
)


def is_slow(path: str, name: str) -> bool:
    """Returns whether `make test` leaves a test out, by its file below tests/ and its name."""
    return f'{path}::{name}'.startswith(SLOW)


def compiles(path: str, name: str, fixtures: set[str]) -> bool:
    """Returns whether a test compiles a network: by its file below tests/, name and fixtures."""
    place = f'{path}::{name}'
    return bool(fixtures & FIXTURES) or place.startswith(COMPILING)
