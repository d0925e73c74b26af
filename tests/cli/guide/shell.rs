//! As much of a shell's grammar as the pages use, to find the command lines of this program in it.

use std::{iter::Peekable, str::Chars};

/// A word, or what ends a command.
enum Token {
    Word(String),
    End,
}

/// Words that stand in front of a command without being one.
const IN_FRONT: [&str; 10] = [
    "do", "then", "else", "if", "while", "until", "!", "time", "sudo", "exec",
];

/// The command lines of `blockferry` in `text`: also in pipes, in `$( )`, in what `--run` and `sh -c` are given, and
/// of `[ serve ... ]`, which stands for it.
pub(super) fn blockferry_commands(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut command: Vec<String> = Vec::new();
    let mut inner = Vec::new();
    let tokens = tokens(text, &mut inner);
    for token in tokens.into_iter().chain([Token::End]) {
        match token {
            Token::Word(word) => command.push(word),
            Token::End => look_at(&std::mem::take(&mut command), &mut found),
        }
    }
    for text in inner {
        found.extend(blockferry_commands(&text));
    }
    found
}

fn look_at(words: &[String], found: &mut Vec<Vec<String>>) {
    let is_in_front = |word: &String| IN_FRONT.contains(&&**word) || is_assignment(word);
    let start = words.iter().take_while(|word| is_in_front(word)).count();
    let words = &words[start..];
    for (index, word) in words.iter().enumerate() {
        let next = words.get(index + 1);
        if let ("--run" | "-c", Some(script)) = (&**word, next) {
            found.extend(blockferry_commands(script));
        }
        if let ("[", Some("serve")) = (&**word, next.map(|next| &**next)) {
            let group = &words[index + 1..];
            let end = end_of_group(group);
            let program = ["blockferry".to_owned()].into_iter();
            found.push(program.chain(group[..end].iter().cloned()).collect());
        }
    }
    // Programs that start another one have it among their arguments.
    let place = words.iter().position(|word| word == "blockferry");
    let begins = words.first().is_some_and(|word| {
        matches!(
            &**word,
            "blockferry" | "timeout" | "nice" | "strace" | "env" | "systemd-run"
        )
    });
    if let (true, Some(place)) = (begins, place) {
        found.push(words[place..].to_vec());
    }
}

fn end_of_group(words: &[String]) -> usize {
    let mut depth = 1;
    for (index, word) in words.iter().enumerate() {
        match &**word {
            "[" => depth += 1,
            "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index;
        }
    }
    words.len()
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
    })
}

/// Whether a command needs another line: a quote is open, or the line ends with a backslash.
pub(super) fn goes_on(text: &str) -> bool {
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None | Some('"'), '\\') => {
                let escaped = chars.next();
                let is_line_end = matches!(escaped, None | Some('\n'));
                if is_line_end && chars.as_str().is_empty() {
                    return true;
                }
            }
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            _ => {}
        }
    }
    quote.is_some()
}

/// The words of `text`, and in `inner` the text of each `$( )`.
fn tokens(text: &str, inner: &mut Vec<String>) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '|' | ';' | '&' | '(' | ')' => tokens.push(Token::End),
            '\\' if chars.peek() == Some(&'\n') => drop(chars.next()),
            c if c.is_whitespace() => {}
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            '<' | '>' => skip_redirection(&mut chars),
            '0'..='2' if matches!(chars.peek(), Some('<' | '>')) => {
                chars.next();
                skip_redirection(&mut chars);
            }
            c => tokens.push(Token::Word(word(c, &mut chars, inner))),
        }
    }
    tokens
}

fn skip_redirection(chars: &mut Peekable<Chars<'_>>) {
    while chars
        .next_if(|c| matches!(c, '<' | '>' | '&' | ' '))
        .is_some()
    {}
    if let Some(first) = chars.next() {
        word(first, chars, &mut Vec::new());
    }
}

/// The word that begins with `first`. What the shell would put into it stays as it is written.
fn word(first: char, chars: &mut Peekable<Chars<'_>>, inner: &mut Vec<String>) -> String {
    let mut word = String::new();
    let mut quote = None;
    let mut next = Some(first);
    while let Some(c) = next {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None | Some('"'), '\\') => match chars.next() {
                Some('\n') | None => {}
                Some(c) => {
                    if quote.is_some() && !matches!(c, '"' | '\\' | '$' | '`') {
                        word.push('\\');
                    }
                    word.push(c);
                }
            },
            (None | Some('"'), '$') if chars.peek() == Some(&'(') => {
                chars.next();
                inner.push(substitution(chars));
                word.push_str("substituted");
            }
            (_, c) => word.push(c),
        }
        next = match quote {
            Some(_) => chars.next(),
            None => chars.next_if(|c| {
                !c.is_whitespace() && !matches!(c, '|' | ';' | '&' | '(' | ')' | '<' | '>')
            }),
        };
    }
    word
}

/// The text up to the end of a `$(` that was just passed.
fn substitution(chars: &mut Peekable<Chars<'_>>) -> String {
    let mut depth = 1;
    let mut text = String::new();
    for c in chars.by_ref() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        text.push(c);
    }
    text
}

#[test]
fn command_lines_are_found_wherever_a_shell_would_find_them() {
    let found = |text| -> Vec<String> {
        let commands = blockferry_commands(text).into_iter();
        commands.map(|words| words.join("|")).collect()
    };
    assert_eq!(
        found("blockferry copy 'a b' \"c d\" >x 2>&1"),
        ["blockferry|copy|a b|c d"]
    );
    assert_eq!(
        found("cat x | blockferry copy - out && A=1 blockferry info \\\n  out &"),
        ["blockferry|copy|-|out", "blockferry|info|out"]
    );
    assert_eq!(
        found("blockferry copy [ serve --filter rate:1M a ] $(blockferry x)"),
        [
            "blockferry|serve|--filter|rate:1M|a",
            "blockferry|copy|[|serve|--filter|rate:1M|a|]|substituted",
            "blockferry|x",
        ]
    );
    assert_eq!(
        found("nbdkit null --run 'blockferry map \"$uri\"' # blockferry no"),
        ["blockferry|map|$uri"]
    );
    assert_eq!(found("echo blockferry is not a command"), [""; 0]);
    assert!(goes_on("a 'b") && goes_on("a \\") && !goes_on("a 'b\\'") && !goes_on("a"));
}
