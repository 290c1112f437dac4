"""Which tests compile networks or start runs: `make check` leaves these out, `make test` not."""

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
    'docs/test_notebooks.py::test_notebook_runs_anywhere_quietly_and_leaves_nothing',
    'docs/test_notebooks.py::test_failing_cell_fails_and_the_kernel_is_this_python',
    'docs/test_readme.py::test_commands_work_as_they_are_written',
    'explaining/',
    'exporting/test_export.py',
    'exporting/test_tflite.py',
    'exporting/test_web.py',
    'inference/test_export_function.py',
    'models/test_intermediates.py',
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
    'training/test_finetuning.py',
    'training/test_loop.py',
    'training/test_processes.py',
    'training/test_run_record.py::test_the_record_of_an_interrupted_run_has_both_parts',
    'training/test_slurm.py',
    'weights/',
)


def compiles(path: str, name: str, fixtures: set[str]) -> bool:
    """Returns whether a test compiles a network: by its file below tests/, name and fixtures."""
    place = f'{path}::{name}'
    return bool(fixtures & FIXTURES) or place.startswith(COMPILING)
