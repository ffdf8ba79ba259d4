//! As much of the shell's grammar as the documents use.

/// The simple commands of a line, each as its words: pipelines and lists are taken apart, redirections, variables in
/// front, comments and `sudo` are left out.
pub(crate) fn commands(line: &str) -> Vec<Vec<String>> {
    let mut found = vec![Vec::new()];
    // Words of an inner `$(...)` belong to its outer word.
    for word in words(line) {
        match word {
            Token::End => found.push(Vec::new()),
            Token::Word(word) => found.last_mut().unwrap().push(word),
        }
    }
    let cleaned = found.into_iter().map(|words| {
        let assigns = |word: &String| {
            let name = word.split_once('=').map_or("", |(name, _)| name);
            !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        };
        words.into_iter().skip_while(|word| assigns(word) || word == "sudo").collect::<Vec<_>>()
    });
    cleaned.filter(|words| !words.is_empty()).collect()
}

enum Token {
    Word(String),
    End,
}

fn words(line: &str) -> Vec<Token> {
    let (mut found, mut word, mut quote, mut depth) = (Vec::new(), None::<String>, None, 0);
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '$') if letters.peek() == Some(&'(') => depth += 1,
            (None, ')') if depth > 0 => depth -= 1,
            (None, c) if depth > 0 => word.get_or_insert_default().push(c),
            (None, '#') if word.is_none() => break,
            (None, ' ') => found.extend(word.take().map(Token::Word)),
            (None, '|' | ';' | '&') => {
                found.extend(word.take().map(Token::Word));
                found.push(Token::End);
            }
            (None, '<' | '>') => {
                // The number in front and the file behind belong to it.
                if word.as_ref().is_some_and(|word| word.parse::<u32>().is_err()) {
                    found.extend(word.take().map(Token::Word));
                }
                word = None;
                while letters.next_if(|c| matches!(c, ' ' | '>' | '&')).is_some() {}
                while letters.next_if(|c| !matches!(c, ' ' | ';' | '|' | '&')).is_some() {}
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    found.extend(word.take().map(Token::Word));
    found
}
