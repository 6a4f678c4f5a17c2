// The proxy seen through openai-node.
import assert from 'node:assert/strict';
import { beforeEach, describe, test } from 'node:test';
import OpenAI from 'openai';
import { zodFunction, zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { ask, BEGUN, call, client, HI, lab, OUCH, says, status, tool } from './lab.js';

const openai = client();
beforeEach(() => lab.clear());

for (const stream of [true, false]) {
  describe(stream ? 'streamed' : 'whole', () => {
    const tag = (name) => `js-${name}-${stream}`;

    test('direct: plain text', async () => {
      const model = await lab.script(tag('plain'), [says('It is sunny, I think.')]);
      const answer = await ask(openai, stream, model);
      assert.deepEqual([answer.text, answer.finish, answer.calls], ['It is sunny, I think.', 'stop', []]);
    });

    test('one owned call is run and never seen', async () => {
      const model = await lab.script(tag('one'), [
        says(null, [call('get_weather', { city: 'Paris' }, 'call_abc')]), says('Paris is fine.'),
      ]);
      const answer = await ask(openai, stream, model);
      assert.deepEqual([answer.text, answer.finish, answer.calls], ['Paris is fine.', 'stop', []]);
      const [, second] = await lab.bodies(model);
      const [said, result] = second.messages.slice(-2);
      assert.equal(said.tool_calls[0].id, 'call_abc');
      assert.deepEqual([result.role, result.tool_call_id, result.name], ['tool', 'call_abc', 'get_weather']);
      assert.match(result.content, /Paris/);
    });

    test('eight calls run at once and their results keep the order', async () => {
      const waits = [800, 700, 600, 500, 400, 300, 200, 100];
      const model = await lab.script(tag('eight'), [
        says(null, waits.map((ms) => call('slow', { ms }))), says('done'),
      ]);
      assert.equal((await ask(openai, stream, model)).text, 'done');
      const { tools } = await lab.journal();
      assert.deepEqual([tools.slow.started, tools.slow.most_at_once], [8, 8]);
      const results = (await lab.bodies(model)).at(-1).messages.slice(-8);
      assert.deepEqual(results.map((r) => Number(JSON.parse(r.content).query.ms)), waits);
    });

    test('three rounds', async () => {
      const model = await lab.script(tag('three'), [
        says(null, [call('get_weather', { city: 'Paris' })]),
        says(null, [call('get_weather', { city: 'Lima' })]),
        says('both fine'),
      ]);
      assert.equal((await ask(openai, stream, model)).text.trim(), 'both fine');
      assert.deepEqual((await lab.bodies(model)).map((body) => body.messages.length), [1, 3, 5]);
    });

    test('direct: foreign tools only', async () => {
      const tools = [tool('get_location')];
      const model = await lab.script(tag('foreign'), [
        says(null, [call('get_location', {}, 'call_loc')]), says('hello'),
      ]);
      const answer = await ask(openai, stream, model, HI, { tools });
      assert.equal(answer.finish, 'tool_calls');
      assert.deepEqual(answer.calls, [{ id: 'call_loc', name: 'get_location', arguments: '{}' }]);
      const result = { role: 'tool', tool_call_id: 'call_loc', content: 'Oslo' };
      const last = await ask(openai, stream, model, [...HI, answer.message, result], { tools });
      assert.equal(last.text, 'hello');
    });

    test('a mixed reply shows the foreign call and puts all results back', async () => {
      const tools = [tool('get_location')];
      const model = await lab.script(tag('mixed'), [
        says(null, [
          call('get_weather', { city: 'Paris' }, 'call_w1'),
          call('get_location', {}, 'call_loc'),
          call('get_weather', { city: 'Lima' }, 'call_w2'),
        ]),
        says('all known'),
      ]);
      const answer = await ask(openai, stream, model, HI, { tools });
      assert.deepEqual(answer.calls.map((c) => c.name), ['get_location']);
      assert.equal(answer.finish, 'tool_calls');
      const result = { role: 'tool', tool_call_id: answer.calls[0].id, content: 'Oslo' };
      const last = await ask(openai, stream, model, [...HI, answer.message, result], { tools });
      assert.deepEqual([last.text, last.calls], ['all known', []]);
      const { messages } = (await lab.bodies(model)).at(-1);
      const order = ['call_w1', 'call_loc', 'call_w2'];
      assert.deepEqual(messages[1].tool_calls.map((c) => c.id), order);
      assert.deepEqual(messages.slice(2).map((m) => m.tool_call_id), order);
      assert.equal(await lab.runs('get_weather'), 2);
    });

    test('bad calls become results and leave the others alone', async () => {
      const model = await lab.script(tag('bad'), [
        says(null, [
          call('broken'), call('hanging'), call('no_such_tool'), call('get_weather', '{"city": '),
          call('get_weather', { city: 'Lima' }),
        ]),
        says('well'),
      ]);
      assert.equal((await ask(openai, stream, model)).text, 'well');
      const results = (await lab.bodies(model)).at(-1).messages.slice(-5).map((m) => m.content);
      for (const bad of results.slice(0, 4)) assert.match(bad, /^error: /);
      assert.match(results[4], /Lima/);
    });

    test('direct: an upstream refusal comes through', async () => {
      const model = await lab.script(tag('400'), [status(400)], { repeat: true });
      await assert.rejects(ask(openai, stream, model), (error) => {
        assert.ok(error instanceof OpenAI.BadRequestError);
        assert.equal(error.code, 'ouch');
        return true;
      });
    });

    test('an upstream that stays broken is a 502', async () => {
      const model = await lab.script(tag('500'), [status(500)], { repeat: true, advance: 'requests' });
      await assert.rejects(ask(openai, stream, model), (error) => {
        assert.ok(error instanceof OpenAI.InternalServerError);
        assert.equal(error.status, 502);
        return true;
      });
    });

    test('after a tool with effects no failure invites a retry', async () => {
      const model = await lab.script(
        tag('effect'), [says(null, [call('save_note', { text: 'once' })]), status(500)], { repeat: true },
      );
      await assert.rejects(ask(client(2), stream, model), OpenAI.APIError);
      assert.equal(await lab.runs('save_note'), 1);
    });
  });
}

test('usage is the sum of all rounds and told only to who asks', async () => {
  const model = await lab.script('js-usage', [
    says(null, [call('get_weather', { city: 'Paris' })], { usage: [100, 7] }), says('fine', [], { usage: [130, 5] }),
  ]);
  const told = [
    (await ask(openai, false, model)).usage,
    (await ask(openai, true, model, HI, { stream_options: { include_usage: true } })).usage,
  ];
  for (const usage of told) assert.deepEqual([usage.prompt_tokens, usage.total_tokens], [230, 242]);
  assert.equal((await ask(openai, true, model)).usage, undefined);
});

test('direct: an error in the middle of the stream raises', async () => {
  const model = await lab.script('js-mid', [{ steps: [{ events: [...BEGUN, OUCH] }] }], { repeat: true });
  await assert.rejects(ask(openai, true, model), OpenAI.APIError);
});

for (const end of ['end', 'close', 'reset']) {
  test(`a stream that breaks off raises: ${end}`, async () => {
    const steps = [{ events: BEGUN }, { wait_ms: 50 }, end];
    const model = await lab.script(`js-cut-${end}`, [{ steps }], { repeat: true });
    await assert.rejects(ask(openai, true, model), OpenAI.APIError);
  });
}

for (const end of ['end', 'close', 'reset']) {
  test(`a relayed stream that breaks off raises: ${end}`, async () => {
    const steps = [{ events: BEGUN }, { wait_ms: 50 }, end];
    const model = await lab.script(`js-relay-${end}`, [{ steps }], { repeat: true });
    const relayed = openai.withOptions({ defaultHeaders: { 'x-fanfold-tools': 'none' } });
    await assert.rejects(ask(relayed, true, model), OpenAI.APIError);
  });
}

describe('the stream helper', () => {
  test('direct: plain text', async () => {
    const model = await lab.script('js-h-plain', [says('one two three four five')]);
    const stream = openai.chat.completions.stream({ model, messages: HI });
    let seen = '';
    stream.on('content', (delta) => (seen += delta));
    assert.equal(await stream.finalContent(), 'one two three four five');
    assert.equal(seen, 'one two three four five');
  });

  test('over owned calls', async () => {
    const model = await lab.script('js-h-owned', [says(null, [call('get_weather', { city: 'Paris' })]), says('fine')]);
    const message = await openai.chat.completions.stream({ model, messages: HI }).finalMessage();
    assert.equal(message.content, 'fine');
    assert.ok(!message.tool_calls?.length);
  });

  test('over a mixed reply', async () => {
    const model = await lab.script('js-h-mixed', [
      says(null, [call('get_weather', { city: 'Paris' }), call('get_location', {}, 'call_l')]),
    ]);
    const stream = openai.chat.completions.stream({ model, messages: HI, tools: [tool('get_location')] });
    const { choices: [{ message, finish_reason }] } = await stream.finalChatCompletion();
    assert.deepEqual(message.tool_calls.map((c) => [c.id, c.function.name]), [['call_l', 'get_location']]);
    assert.equal(finish_reason, 'tool_calls');
  });

  test('over the text of three rounds', async () => {
    const model = await lab.script('js-h-three', [
      says('Paris first.', [call('get_weather', { city: 'Paris' })]),
      says('Now Lima.', [call('get_weather', { city: 'Lima' })]),
      says('Both are fine.'),
    ]);
    const stream = openai.chat.completions.stream({ model, messages: HI, stream_options: { include_usage: true } });
    const { choices: [{ message }], usage } = await stream.finalChatCompletion();
    assert.equal(message.content, 'Paris first.\n\nNow Lima.\n\nBoth are fine.');
    assert.equal(usage.total_tokens, 45);
  });

  test('an error in the middle raises', async () => {
    const model = await lab.script('js-h-mid', [{ steps: [{ events: [...BEGUN, OUCH] }] }], { repeat: true });
    await assert.rejects(openai.chat.completions.stream({ model, messages: HI }).finalMessage(), OpenAI.APIError);
  });
});

test('runTools runs the client its own tool beside the owned ones', async () => {
  const model = await lab.script('js-run', [
    says(null, [call('get_weather', { city: 'Paris' }), call('get_location', {}, 'call_l')]),
    says('all known'),
  ]);
  let ran = 0;
  const declared = tool('get_location');
  declared.function.parse = JSON.parse;
  declared.function.function = () => `Oslo ${++ran}`;
  const runner = openai.chat.completions.runTools({ model, messages: HI, tools: [declared] });
  assert.equal(await runner.finalContent(), 'all known');
  assert.equal(ran, 1);
  const results = (await lab.bodies(model)).at(-1).messages.slice(-2);
  assert.match(results[0].content, /Paris/);
  assert.equal(results[1].content, 'Oslo 1');
});

describe('parse', () => {
  const Weather = z.object({ city: z.string(), celsius: z.number() });

  test('direct: a structured answer', async () => {
    const model = await lab.script('js-p-plain', [says('{"city":"Paris","celsius":18}')]);
    const answer = await openai.chat.completions.parse({
      model, messages: HI, response_format: zodResponseFormat(Weather, 'weather'),
    });
    assert.deepEqual(answer.choices[0].message.parsed, { city: 'Paris', celsius: 18 });
  });

  test('a strict foreign call beside owned ones', async () => {
    const model = await lab.script('js-p-strict', [
      says(null, [call('get_weather', { city: 'Paris' }), call('locate', { exact: true })]),
    ]);
    const tools = [zodFunction({ name: 'locate', parameters: z.object({ exact: z.boolean() }) })];
    const answer = await openai.chat.completions.parse({ model, messages: HI, tools });
    const [made] = answer.choices[0].message.tool_calls;
    assert.deepEqual([made.function.name, made.function.parsed_arguments], ['locate', { exact: true }]);
    const [first] = await lab.bodies(model);
    assert.equal(first.parallel_tool_calls, false, 'a strict tool switches parallel calls off');
  });
});
