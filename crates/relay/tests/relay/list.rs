//! One way, by every mode, on every pairing of sockets: what Go's tests of splice ask of `io.Copy`.

use blockferry_relay::{Moved, copy, copy_with};
use tokio::io::AsyncWriteExt;

use crate::{
    bytes::{bytes, receive, receive_exactly},
    line::{Line, MODES, check_way, on_all_pairings, options},
    sockets::Socket,
};

on_all_pairings!(
    one_message_arrives_as_it_was_sent,
    many_small_writes_arrive_in_order,
    a_gibibyte_arrives_whole,
    a_limit_is_honoured_and_the_rest_stays_in_the_socket,
    a_limit_counts_down_what_was_taken,
    a_limit_that_is_reached_already_takes_nothing,
    a_reader_that_has_ended_gives_nothing,
    a_copy_ends_with_half_of_a_connection_and_the_other_half_lives,
);

async fn one_message_arrives_as_it_was_sent<R: Socket, W: Socket>() {
    for mode in MODES {
        let moved = Line::<R, W>::new()
            .await
            .carry(100, 100, options(mode))
            .await
            .unwrap();
        check_way(mode, moved, 100);
    }
}

async fn many_small_writes_arrive_in_order<R: Socket, W: Socket>() {
    for mode in MODES {
        let moved = Line::<R, W>::new()
            .await
            .carry(700_000, 70, options(mode))
            .await
            .unwrap();
        check_way(mode, moved, 700_000);
    }
}

async fn a_gibibyte_arrives_whole<R: Socket, W: Socket>() {
    for mode in MODES {
        let moved = Line::<R, W>::new()
            .await
            .carry(1 << 30, 1 << 19, options(mode))
            .await
            .unwrap();
        check_way(mode, moved, 1 << 30);
    }
}

async fn a_limit_is_honoured_and_the_rest_stays_in_the_socket<R: Socket, W: Socket>() {
    for mode in MODES {
        let mut line = Line::<R, W>::new().await;
        line.left.write_all(&bytes(0, 10_000)).await.unwrap();
        let mut limit = 6_789;

        let moved = copy_with(&mut line.a, &mut line.b, Some(&mut limit), &options(mode))
            .await
            .unwrap();

        check_way(mode, moved, 6_789);
        assert_eq!(limit, 0);
        receive_exactly(&mut line.right, 0, 6_789).await;
        receive_exactly(&mut line.a, 6_789, 10_000).await;
        drop(line.b);
        assert_eq!(receive(&mut line.right, 6_789).await, 6_789);
    }
}

async fn a_limit_counts_down_what_was_taken<R: Socket, W: Socket>() {
    for mode in MODES {
        let mut line = Line::<R, W>::new().await;
        line.left.write_all(&bytes(0, 3_000)).await.unwrap();
        line.left.shutdown().await.unwrap();
        let mut limit = 10_000;

        let moved = copy_with(&mut line.a, &mut line.b, Some(&mut limit), &options(mode))
            .await
            .unwrap();

        check_way(mode, moved, 3_000);
        assert_eq!(limit, 7_000);
        receive_exactly(&mut line.right, 0, 3_000).await;
    }
}

async fn a_limit_that_is_reached_already_takes_nothing<R: Socket, W: Socket>() {
    for mode in MODES {
        let mut line = Line::<R, W>::new().await;
        line.left.write_all(&bytes(0, 100)).await.unwrap();
        let mut limit = 0;

        let moved = copy_with(&mut line.a, &mut line.b, Some(&mut limit), &options(mode))
            .await
            .unwrap();

        assert_eq!((moved, limit), (Moved::default(), 0));
        receive_exactly(&mut line.a, 0, 100).await;
        drop(line.b);
        assert_eq!(receive(&mut line.right, 0).await, 0);
    }
}

async fn a_reader_that_has_ended_gives_nothing<R: Socket, W: Socket>() {
    for mode in MODES {
        let mut line = Line::<R, W>::new().await;
        line.left.shutdown().await.unwrap();
        let mut limit = 5;

        let moved = copy_with(&mut line.a, &mut line.b, Some(&mut limit), &options(mode))
            .await
            .unwrap();
        assert_eq!((moved, limit), (Moved::default(), 5));

        let moved = copy_with(&mut line.a, &mut line.b, None, &options(mode))
            .await
            .unwrap();
        assert_eq!(moved, Moved::default());

        line.b.write_all(&bytes(0, 10)).await.unwrap();
        receive_exactly(&mut line.right, 0, 10).await;
    }
}

async fn a_copy_ends_with_half_of_a_connection_and_the_other_half_lives<R: Socket, W: Socket>() {
    for mode in MODES {
        let mut line = Line::<R, W>::new().await;
        line.left.write_all(&bytes(0, 5_000)).await.unwrap();
        line.left.shutdown().await.unwrap();

        let moved = copy_with(&mut line.a, &mut line.b, None, &options(mode))
            .await
            .unwrap();
        check_way(mode, moved, 5_000);
        line.b.shutdown().await.unwrap();
        assert_eq!(receive(&mut line.right, 0).await, 5_000);

        line.right.write_all(&bytes(0, 7_000)).await.unwrap();
        line.right.shutdown().await.unwrap();
        let moved = copy(&mut line.b, &mut line.a, None).await.unwrap();
        assert_eq!(moved.total(), 7_000);
        line.a.shutdown().await.unwrap();
        assert_eq!(receive(&mut line.left, 0).await, 7_000);
    }
}
