"""The tables of compiled programs, and the restated example that they compare ours with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import compile_program, flax_imagenet, gpu_program, programs, tpu_program
from benchmarks.programs import EXAMPLE, Facts, Program
from flaxcls.errors import RunError, UserError

TINY = {'stage_sizes': (1, 1), 'num_classes': 7, 'width': 4}


def _example(**options):
    model = flax_imagenet.ResNet(**TINY | options)
    optimizer = flax_imagenet.create_optimizer(256)
    return model, optimizer, functools.partial(flax_imagenet.create_state, model, optimizer, 16)


def _batch(rows=8):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(rows, 16, 16, 3)).astype(np.float32)
    return {'image': images, 'label': rng.integers(0, 7, rows).astype(np.int32)}


def _at_step(state, step):
    """Returns the state as the schedule has it at a step, since the rate begins at zero."""
    set_count = lambda path, x: jnp.full_like(x, step) if 'count' in str(path[-1]) else x  # noqa: E731
    return state._replace(opt_state=jax.tree_util.tree_map_with_path(set_count, state.opt_state))


@functools.cache
def _run(devices, step):
    """Returns the state before and after an update on so many devices, and the metrics."""
    model, optimizer, create_state = _example()
    state = _at_step(jax.jit(create_state)(), step)
    before = jax.tree.map(np.array, state)
    train_step = flax_imagenet.make_train_step(model, optimizer)
    after, metrics = flax_imagenet.parallelize(train_step, jax.devices()[:devices])(state, _batch())
    return before, after, metrics


def test_example_is_resnet50():
    model, optimizer = flax_imagenet.ResNet(), flax_imagenet.create_optimizer(1024)
    state = jax.eval_shape(lambda: flax_imagenet.create_state(model, optimizer))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 25_557_032
    assert state.params['stage4_block1']['conv2']['kernel'].shape == (3, 3, 512, 512)


def test_a_step_of_the_example_is_sgd_with_nesterovs_momentum_on_the_penalised_loss():
    before, after, metrics = _run(devices=1, step=1000)
    model, _, _ = _example()
    batch = _batch()

    def loss_fn(params):
        variables = {'params': params, 'batch_stats': before.batch_stats}
        logits, _ = model.apply(variables, batch['image'], train=True, mutable=['batch_stats'])
        chosen = jnp.take_along_axis(logits, batch['label'][:, None], 1)[:, 0]
        loss = jnp.mean(jnp.log(jnp.exp(logits).sum(-1)) - chosen)
        squares = [jnp.vdot(x, x) for x in jax.tree.leaves(params) if x.ndim in (2, 4)]
        return loss + 0.00005 * sum(squares), (loss, logits)

    gradients, (loss, logits) = jax.jit(jax.grad(loss_fn, has_aux=True))(before.params)
    rate = 0.1 * 1000 / (5 * (1_281_167 // 256))  # The warm-up's.
    # The momentum is the gradient, of which Nesterov looks 0.9 ahead.
    expected = jax.tree.map(lambda x, g: x - rate * 1.9 * g, before.params, gradients)
    for leaves in zip(*map(jax.tree.leaves, (after.params, expected)), strict=True):
        np.testing.assert_allclose(*leaves, rtol=1e-5, atol=1e-7)
    assert metrics['loss'] == pytest.approx(float(loss), rel=1e-5)
    right = np.argmax(logits, -1) == batch['label']
    assert float(metrics['accuracy']) == pytest.approx(np.mean(right))
    assert int(after.step) == 1


def test_example_learns_its_batch():
    model, optimizer, create_state = _example()
    step = flax_imagenet.parallelize(
        flax_imagenet.make_train_step(model, optimizer), jax.devices()[:1]
    )
    state, losses = _at_step(jax.jit(create_state)(), 10_000), []
    for _ in range(10):
        state, metrics = step(state, _batch())
        losses.append(float(metrics['loss']))
    assert losses[-1] < losses[0] / 2


def test_example_takes_statistics_of_the_whole_batch():
    (before, one, _), (_, two, _) = (_run(devices=count, step=1000) for count in (1, 2))
    for leaves in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        np.testing.assert_allclose(*leaves, rtol=1e-4, atol=1e-6)
    kernel, order = before.params['stem']['kernel'], ('NHWC', 'HWIO', 'NHWC')
    maps = jax.lax.conv_general_dilated(
        _batch()['image'], kernel, (2, 2), [(3, 3)] * 2, dimension_numbers=order
    )
    stats = two.batch_stats['bn_stem']
    np.testing.assert_allclose(stats['mean'], 0.1 * maps.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * maps.var((0, 1, 2)), rtol=1e-4)


def test_example_computes_in_its_dtype_and_keeps_float32():
    model, _, create_state = _example(dtype=jnp.bfloat16)
    state = jax.eval_shape(create_state)
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.bfloat16)
    apply = functools.partial(model.apply, train=False, capture_intermediates=True)
    logits, kept = jax.eval_shape(apply, variables, images)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state[1:3])} == {jnp.dtype('float32')}
    inner = kept['intermediates']['stage2_block1']
    assert {leaf.dtype for leaf in jax.tree.leaves(inner)} == {jnp.dtype('bfloat16')}


COMPARED = {
    Program(EXAMPLE): Facts(
        90, 9 * 2**30, 24e9 * 256, 320e6 * 256, {'all-reduce': (99, 50e6)}, hbm=250e6 * 256
    ),
    Program('resnet50'): Facts(
        80,
        6 * 2**30,
        24e9 * 256,
        240e6 * 256,
        {'all-reduce': (2, 100e6), 'all-gather': (1, 1e6)},
        hbm=225e6 * 256,
    ),
    Program('resnet50', remat='norm'): Facts(error='no room'),
    Program('vgg16_bn', remat='norm'): Facts(
        5.4, 3 * 2**30, kernels={'cuDNN': 159, 'fused': 300, 'TopK': 2, 'cholesky': 1}
    ),
}


@pytest.fixture
def compiled(monkeypatch):
    """Compiles nothing; programs that COMPARED does not have are all alike."""
    asked = []

    def compile_apart(program):
        asked.append(program)
        return COMPARED.get(program._replace(target=None), Facts(1, 2**30, 1e9, 1e6, hbm=1e6))

    monkeypatch.setattr(programs, 'compile_apart', compile_apart)
    monkeypatch.setattr(programs, 'prepare_environment', lambda target: None)
    return asked


def test_tpu_table_gives_what_an_image_costs_and_the_ratios(compiled, capsys):
    models = f'--models={EXAMPLE},resnet50'
    tpu_program.main([models, '--remat=none', '--dtype=float32,bfloat16'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'tpu:v5e:2x2, 256 images a chip, effort 0'
    example = next(line for line in lines if line.startswith(EXAMPLE) and 'bfloat16' in line)
    shown = ' '.join(example.split()[1:])
    assert shown == 'train bfloat16 none 320.0 250.0 24.00 9.00 99 50.0 90'
    assert len({len(line) for line in lines[1:6]}) == 1  # Columns end where their titles do.
    assert lines[6:] == [
        'resnet50 / flax_example, float32, remat none: accessed 1.00, HBM 1.00, FLOPs 1.00, '
        'memory 1.00; collectives 0 to 0, MB sent 0.0 to 0.0',
        'resnet50 / flax_example, bfloat16, remat none: accessed 0.75, HBM 0.90, FLOPs 1.00, '
        'memory 0.67; collectives 3 to 99, MB sent 101.0 to 50.0',
    ]


def test_a_program_that_fails_is_a_row_and_the_table_continues(compiled, capsys):
    with pytest.raises(RunError, match='1 of 6 programs did not compile'):
        tpu_program.main(['--models=resnet50,alexnet'])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [program.network for program in compiled] == ['resnet50'] * 3 + ['alexnet'] * 3
    assert rows[1].split()[:4] == ['resnet50', 'train', 'bfloat16', 'norm']
    assert rows[1].endswith('FAILED: no room')
    assert rows[5].startswith('alexnet')


def test_gpu_table_has_every_kind_of_network(compiled, capsys, monkeypatch):
    monkeypatch.delitem(COMPARED, Program('resnet50', remat='norm'))
    gpu_program.main(['--step=train,eval'])
    # What is recomputed makes another program in training alone.
    assert len(set(compiled)) == len(compiled) == len(programs.FAMILIES) * 2 * (3 + 1)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    shown = next(row for row in rows if row[:4] == ['vgg16_bn', 'train', 'bfloat16', 'norm'])
    assert ' '.join(shown[4:]) == '3.00 159 0 0 300 5 2 TopK, 1 cholesky'


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (['--models=resnet5'], r'--models=resnet5 is unknown \(did you mean resnet'),
        (['--models=alexnet,familes'], r'did you mean families\?'),
        (['--remat=full'], 'choose from none, norm, block'),
        (['--dtype=float16'], r'did you mean bfloat16\?|did you mean float32\?'),
        (['--step=test'], '--step=test is unknown'),
        (['--per_chip=0'], '--per_chip=0 must be positive'),
        (['--per_chip=many'], 'invalid int value'),
        (['--effort=0.5'], 'must lie between -1 and 0'),
        (['--effort=nan'], 'must lie between -1 and 0'),
        (['--target=gpu:h100'], '--target=gpu:h100 is not a tpu:'),
        ([f'--models={EXAMPLE}', '--step=eval'], 'has no --step=eval'),
        (['--networks=alexnet'], 'the argument --networks is unknown'),
    ],
    ids=str,
)
def test_a_wrong_flag_is_one_sentence(flags, says, compiled):
    with pytest.raises(UserError, match=says) as caught:
        tpu_program.main(flags)
    assert '\n' not in str(caught.value)
    assert not compiled


def test_effort_belongs_to_a_tpu(compiled):
    with pytest.raises(UserError, match='the argument --effort is unknown'):
        gpu_program.main(['--effort=0'])


def test_a_target_that_is_not_there_ends_the_table():
    """The process that would compile says so."""
    with pytest.raises(UserError, match=r'^--target=tpu:v9 is unknown'):
        programs.compile_apart(Program('alexnet', target='tpu:v9'))


def test_a_process_that_died_leaves_its_last_words():
    stderr = 'I0101 starting\nF0101 12:00 a.cc:7] Check failed: x == 1\n*** Check failure ***\n'
    assert programs.last_words(stderr, -6) == 'SIGABRT: F0101 12:00 a.cc:7] Check failed: x == 1'
    assert programs.last_words('Traceback:\nValueError: no\n', 1) == 'exit code 1: ValueError: no'
    assert programs.last_words('', -9) == 'SIGKILL'


@pytest.mark.parametrize('step', programs.STEPS)
def test_a_program_of_ours_reports_what_it_needs(step):
    program = Program('resnet20', step, 'float32', per_chip=4)
    facts = compile_program.compile_here(program)
    assert facts.error is None and facts.seconds > 0
    # Each multiply-add is two FLOPs, and training is a forward pass thrice.
    passes = 3 if step == 'train' else 1
    assert facts.flops / 4 == pytest.approx(2 * passes * 0.0406e9, rel=0.2)
    weights = 4 * 269_722
    assert facts.memory > weights * (2 if step == 'train' else 1)
    assert sum(number for number, _ in facts.collectives.values()) >= 1


def test_what_does_not_compile_reports_its_first_line(monkeypatch):
    def compile_train_step(setup, options):
        raise RuntimeError(
            'RESOURCE_EXHAUSTED: no memory.\n  Used 33.13G of 15.75G hbm. Exceeded\n\nTotal'
        )

    monkeypatch.setattr(compile_program, 'compile_train_step', compile_train_step)
    facts = compile_program.compile_here(Program('alexnet', per_chip=4))
    assert facts.error == (
        'RuntimeError: RESOURCE_EXHAUSTED: no memory. Used 33.13G of 15.75G hbm. Exceeded'
    )


def test_kernels_are_counted_by_the_library_that_they_come_from():
    hlo = """
      %a = (bf16[8]{0}, u8[0]{0}) custom-call(%x, %y), custom_call_target="__cudnn$convForward"
      %b = (f32[8]{0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$convBackwardInput"
      %c = f32[8]{0} custom-call(%x, %y), custom_call_target="__cublas$lt$matmul"
      %d = f32[8]{0} fusion(%x), kind=kCustom, calls=%f, backend_config={"kind":"__triton_gemm"}
      %e = f32[8]{0} fusion(%x), kind=kCustom, calls=%f, backend_config={"kind":"__cudnn$fusion"}
      %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%g
      %g = f32[8]{0} fusion(%x), kind=kInput, calls=%h, metadata={op_name="custom-call"}
      %h = f32[8]{0} custom-call(%x), custom_call_target="TopK"
      %i = f32[8]{0} add(%x, %y)
    """
    expected = {'cuDNN': 3, 'cuBLAS': 1, 'Triton': 1, 'fused': 2, 'TopK': 1}
    assert compile_program.count_kernels(hlo) == expected


def test_bytes_of_main_memory_leave_out_vector_memory_and_count_a_copy_once():
    hlo = """
ENTRY %main (a: bf16[8,4]) -> f32[4] {
  %a = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[4]{0:T(256)} parameter(1)
  %copy-start.1 = (bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, bf16[8,4]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done.1 = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %fusion.1 = (f32[4]{0:T(256)S(1)}, f32[4]{0:T(256)}) fusion(%copy-done.1, %b), kind=kLoop
  %get.1 = f32[4]{0:T(256)} get-tuple-element(%fusion.1), index=1
  ROOT %negate.1 = f32[4]{0:T(256)} negate(%get.1)
}
"""  # noqa: E501
    copied, fused, negated = 2 * 8 * 4, 4 * (4 + 4), 4 * (4 + 4)
    assert compile_program.hbm_bytes(hlo) == copied + fused + negated
