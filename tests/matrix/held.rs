//! The rest of the matrix: what is left of the model and its tools, faults of clients and of the process itself.
//! Their tests live with what they test; here is which of them holds which row, and each has to be there.

/// A fault, and the tests that hold it, as `file::test`.
type Row = (&'static str, &'static [&'static str]);

/// A section, its rows, and for each the tests that hold it.
pub(super) const SECTIONS: [(&str, &[Row]); 4] = [
    (
        "model and tools",
        &[
            ("calls of all kinds, in every order", &["tests/fuzz/oracles/engine.rs"]),
            (
                "a tool taken away in the middle of a turn",
                &["tests/teams.rs::a_tool_that_is_taken_away_in_the_middle_of_a_turn_is_not_called_any_more"],
            ),
            (
                "one of eight calls at once hangs",
                &["tests/turns.rs::a_call_that_hangs_ends_at_its_own_timeout_and_the_other_seven_are_kept"],
            ),
            (
                "every refused network, in every spelling",
                &[
                    "src/tools/address.rs::every_refused_range_is_refused_to_its_edges",
                    "src/tools/address.rs::what_lies_beside_a_refused_range_is_taken",
                    "src/tools/http/connect/tests.rs::no_spelling_of_a_refused_address_reaches_it",
                ],
            ),
            (
                "blocked by address policy",
                &[
                    "src/tools/http/tests.rs::a_target_refused_by_policy_is_denied_without_a_detail_and_never_reached",
                    "tests/rebinding.rs::a_name_that_changes_its_address_never_leads_inside",
                ],
            ),
            (
                "a tool server stays down",
                &["src/tools/mcp/tests.rs::a_server_that_is_down_is_tried_again_after_one_to_sixty_seconds"],
            ),
            (
                "a pinned tool has changed since the last start",
                &["tests/tool_servers.rs::a_pinned_tool_is_offered_as_it_was_accepted_and_no_other"],
            ),
            (
                "a redirect on the tool's own origin, once and without an end",
                &[
                    "src/tools/http/tests.rs::redirects_on_the_own_origin_are_followed_where_that_does_no_harm",
                    "src/tools/http/tests.rs::redirects_without_an_end_are_cut_off",
                ],
            ),
            (
                "a result that is compressed, which nobody asked for",
                &["src/tools/http/tests.rs::what_is_no_text_is_described"],
            ),
            (
                "a command forks, or leaves its group",
                &[
                    "src/tools/command/tests.rs::who_forks_is_not_waited_for_and_its_children_end_with_it",
                    "tests/sandbox.rs::nothing_of_a_command_in_bubblewrap_outlives_it",
                ],
            ),
            (
                "a command prints without an end",
                &["src/tools/command/tests.rs::who_prints_without_an_end_is_stopped"],
            ),
            (
                "hostile arguments",
                &[
                    "src/tools/http/tests.rs::no_hostile_value_changes_what_a_server_is_asked",
                    "src/tools/command/tests.rs::a_value_cannot_become_an_option",
                    "tests/fuzz/oracles/arguments.rs",
                ],
            ),
        ],
    ),
    (
        "upstream as a server",
        &[
            (
                "a storm of failures",
                &["tests/failover.rs::a_storm_opens_the_breaker_and_a_reload_keeps_it_open"],
            ),
            (
                "the budget for asking again",
                &[
                    "src/upstream/budget.rs::a_share_of_the_questions_and_some_beside_it_may_be_asked_again",
                    "src/upstream/health.rs::a_budget_that_is_spent_withholds_repetitions_only",
                    "tests/failover.rs::without_a_budget_nothing_is_asked_again",
                ],
            ),
            (
                "the breaker: its one probe, and refusals that are the client's own",
                &[
                    "src/upstream/breaker.rs::a_failed_probe_doubles_the_rest_up_to_a_minute_and_an_answer_resets_it",
                    "src/upstream/breaker.rs::a_probe_whose_client_left_is_followed_by_another",
                    "src/upstream/health.rs::a_clients_own_refusals_never_open_the_breaker_and_storms_do",
                ],
            ),
            (
                "the next upstream of a route",
                &[
                    "src/engine/failover_tests.rs::the_next_upstream_is_asked_at_once_by_its_own_habits",
                    "src/policy/retry.rs::a_long_wait_is_not_waited_for_but_the_next_upstream_is_asked",
                ],
            ),
            (
                "a model that refuses tools beside an effort: the rule's own 400",
                &[
                    "tests/habits.rs::a_model_that_takes_no_tools_beside_an_effort_is_asked_without_one_from_then_on",
                ],
            ),
            (
                "the time of a whole turn",
                &[
                    "src/engine/tests.rs::the_whole_turn_has_a_deadline",
                    "tests/turns.rs::a_model_that_never_pauses_outlasts_neither_the_time_of_a_turn_nor_its_client",
                ],
            ),
            (
                "chats that only go through, once they have begun",
                &[
                    "tests/faults.rs::a_relayed_stream_that_breaks_off_ends_with_an_error_event",
                    "tests/faults.rs::a_relayed_chat_has_the_time_of_a_turn_and_is_measured_as_one",
                ],
            ),
        ],
    ),
    (
        "clients",
        &[
            (
                "leaves while queued",
                &[
                    "tests/teams.rs::a_client_that_leaves_gives_up_its_place_in_the_queue",
                    "tests/leaving.rs::while_its_call_waits_for_a_slot",
                ],
            ),
            (
                "leaves over TLS, HTTP/2, behind an extra byte",
                &[
                    "src/server/tests/leaving.rs::is_seen_through_tls",
                    "src/server/tests/leaving.rs::is_seen_on_http2_for_one_stream_and_for_all",
                    "src/server/tests/leaving.rs::is_seen_behind_an_extra_byte",
                ],
            ),
            (
                "repeats its request",
                &[
                    "tests/repeats.rs::a_finished_request_is_replayed_with_its_status_and_headers",
                    "tests/repeats.rs::a_client_that_left_while_a_tool_wrote_is_told_so_and_the_tool_runs_once",
                    "tests/clients/repeats/run.py",
                ],
            ),
            (
                "slow headers, slow body, reads nothing",
                &[
                    "src/server/tests/slow_clients.rs::a_dripping_head_is_cut_off_too",
                    "src/server/tests/bodies.rs::a_body_that_does_not_come_is_408",
                    "src/server/body.rs::a_dripping_body_is_refused_after_five_seconds",
                    "src/server/tests/slow_clients.rs::a_reader_of_nothing_holds_little_and_is_closed",
                    "tests/hostile.rs",
                ],
            ),
            (
                "floods over HTTP/2",
                &[
                    "src/server/tests/http2.rs::a_flood_of_pings_meets_silence_and_then_the_connections_end",
                    "src/server/tests/http2.rs::a_flood_of_requests_that_are_reset_ends_the_connection",
                    "tests/hostile.rs",
                ],
            ),
            (
                "body over the limit",
                &[
                    "src/server/tests/bodies.rs::a_body_too_large_is_refused_before_it_is_sent",
                    "src/server/body.rs::a_body_announced_too_large_is_not_even_asked_for",
                ],
            ),
            (
                "not JSON, too deep, equal keys, wrong types, trailing bytes",
                &[
                    "tests/requests.rs::a_wrong_member_is_named",
                    "tests/requests.rs::a_thousand_mutated_requests_are_answered_or_refused_and_never_fail_the_proxy",
                    "tests/fuzz/oracles/request.rs",
                ],
            ),
            (
                "wrong path, method, content type, no or two hosts, CONNECT",
                &[
                    "tests/requests.rs::a_wrong_head_is_refused_with_what_to_do",
                    "src/server/tests/requests.rs::two_hosts_none_connect_and_trace_are_refused",
                ],
            ),
            (
                "keys: none, malformed, unknown, revoked, a megabyte long",
                &[
                    "tests/requests.rs::every_wrong_key_gets_the_same_answer",
                    "tests/teams.rs::every_route_refuses_no_key_a_revoked_one_and_an_expired_one",
                    "tests/teams.rs::ten_thousand_wrong_keys_get_one_and_the_same_answer",
                ],
            ),
            (
                "no keys configured",
                &[
                    "tests/cli.rs::a_public_address_needs_keys_or_the_flag",
                    "tests/requests.rs::without_keys_other_sites_cannot_use_the_proxy_through_a_browser",
                ],
            ),
        ],
    ),
    (
        "process",
        &[
            (
                "SIGTERM, once and twice",
                &[
                    "tests/process.rs::a_sigterm_finishes_what_is_in_flight_and_takes_nothing_new",
                    "tests/process.rs::what_is_in_flight_when_the_drain_runs_out_ends_with_an_error",
                    "tests/process.rs::a_second_sigterm_ends_everything_at_once_and_says_so",
                ],
            ),
            (
                "SIGKILL",
                &[
                    "tests/audit.rs::whenever_it_is_killed_every_effect_has_its_intent",
                    "tests/process.rs::a_killed_turn_leaves_nothing_behind_at_the_upstream",
                ],
            ),
            (
                "disk full",
                &["src/audit/tests.rs::what_cannot_be_written_is_refused_or_goes_on_until_it_can_be_again"],
            ),
            (
                "the clock jumps back",
                &["src/store/meter.rs::a_clock_that_goes_back_neither_gives_nor_blocks"],
            ),
            ("no descriptors left", &["src/server/tests/bounds.rs::running_out_of_descriptors_passes"]),
            (
                "a broken configuration on reload",
                &["tests/process.rs::a_reload_swaps_the_configuration_under_a_running_turn"],
            ),
            (
                "a panic in one turn",
                &[
                    "src/server/tests/requests.rs::a_panic_costs_one_request_only",
                    "src/relay/sink.rs::a_turn_that_breaks_off_before_its_answer_is_an_error_nobody_repeats",
                    "src/relay/sink.rs::a_stream_whose_turn_breaks_off_ends_with_an_error_event",
                ],
            ),
            (
                "a model that makes work: members, elements, calls and looks without number",
                &[
                    "src/wire/reply.rs::members_without_number_are_refused_wherever_they_stand",
                    "src/wire/named.rs::names_beyond_the_bound_are_left_out",
                    "src/wire/fold.rs::many_elements_with_an_index_find_their_own",
                    "src/wire/call.rs::a_long_call_that_is_named_in_every_piece_stays_one_call",
                    "src/engine/tests.rs::wrappers_hold_no_more_calls_than_a_reply_may_have",
                ],
            ),
            (
                "a client that repeats a kept reply in one request",
                &["src/engine/parked.rs::what_returns_again_and_again_is_put_back_once"],
            ),
            (
                "overload",
                &[
                    "tests/teams.rs::overload_is_told_before_the_body_is_read",
                    "tests/teams.rs::a_team_that_floods_the_gateway_does_not_keep_another_waiting_behind_it",
                    "src/server/tests/bounds.rs::a_connection_too_many_is_told_so_and_fits_later",
                ],
            ),
            ("mixed load with faults, for a long time", &["tests/soak.rs"]),
        ],
    ),
];
