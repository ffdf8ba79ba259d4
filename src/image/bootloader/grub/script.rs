//! The parser of GRUB's script language: words with quotes, and commands in blocks.

use std::rc::Rc;

/// Most words, parts of words and separators of a script: each takes some 200 bytes of memory, and the longest grub.cfg
/// of a distribution has a tenth of these.
const PARTS: usize = 1 << 16;
/// Maximum nesting of blocks.
const DEPTH: usize = 24;

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Literal text without its quotes. An empty one makes a word, too.
    Text(String),
    /// A variable; unquoted, its value is split at spaces.
    Variable { name: String, quoted: bool },
}

/// A word.
pub(super) type Word = Vec<Piece>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// A newline or a semicolon.
    End,
    Open,
    Close,
}

/// A command, or a compound command.
#[derive(Debug, Clone)]
pub(super) enum Statement {
    Command(Vec<Word>),
    If {
        arms: Vec<(Block, Block)>,
        otherwise: Block,
    },
    While {
        /// `until` instead of `while`.
        until: bool,
        condition: Block,
        body: Block,
    },
    For {
        variable: String,
        values: Vec<Word>,
        body: Block,
    },
    /// `menuentry`, `submenu` or `function`.
    Braces {
        words: Vec<Word>,
        body: Block,
    },
}

pub(super) type Block = Rc<Vec<Statement>>;

/// Parses a script; the error is one line for people.
pub(super) fn parse(text: &str) -> Result<Block, &'static str> {
    let tokens = lex(text)?;
    let mut parser = Parser { tokens: &tokens, at: 0 };
    let block = parser.block(&[], 0)?;
    if parser.at < tokens.len() { Err("a block that was not opened ends") } else { Ok(block) }
}

struct Lexer<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    word: Option<Word>,
    tokens: Vec<Token>,
    parts: usize,
}

fn lex(text: &str) -> Result<Vec<Token>, &'static str> {
    let mut lexer = Lexer { rest: text.chars().peekable(), word: None, tokens: Vec::new(), parts: 0 };
    while let Some(sign) = lexer.rest.next() {
        if lexer.parts > PARTS {
            return Err("it has too many words");
        }
        match sign {
            ' ' | '\t' | '\r' => lexer.end_word(),
            '\n' | ';' => lexer.token(Token::End),
            '#' if lexer.word.is_none() => while lexer.rest.next_if(|sign| *sign != '\n').is_some() {},
            '{' if lexer.word.is_none() => lexer.token(Token::Open),
            '}' if lexer.word.is_none() => lexer.token(Token::Close),
            '\'' => lexer.single()?,
            '"' => lexer.double()?,
            '$' => lexer.variable(false),
            '\\' => match lexer.rest.next() {
                Some('\n') | None => {}
                Some(sign) => lexer.push(sign),
            },
            sign => lexer.push(sign),
        }
    }
    lexer.token(Token::End);
    Ok(lexer.tokens)
}

impl Lexer<'_> {
    fn end_word(&mut self) {
        self.tokens.extend(self.word.take().map(Token::Word));
    }

    fn token(&mut self, token: Token) {
        self.end_word();
        self.parts += 1;
        self.tokens.push(token);
    }

    fn text(&mut self, more: &str) {
        let word = self.word.get_or_insert_default();
        match word.last_mut() {
            Some(Piece::Text(text)) => text.push_str(more),
            _ => {
                self.parts += 1;
                word.push(Piece::Text(more.to_owned()));
            }
        }
    }

    fn push(&mut self, sign: char) {
        self.text(sign.encode_utf8(&mut [0; 4]));
    }

    fn single(&mut self) -> Result<(), &'static str> {
        self.text("");
        loop {
            match self.rest.next() {
                Some('\'') => return Ok(()),
                Some(sign) => self.push(sign),
                None => return Err("a quote is not closed"),
            }
        }
    }

    fn double(&mut self) -> Result<(), &'static str> {
        self.text("");
        loop {
            match self.rest.next() {
                Some('"') => return Ok(()),
                Some('$') => self.variable(true),
                Some('\\') => match self.rest.next() {
                    Some('\n') | None => {}
                    Some(sign @ ('$' | '"' | '\\')) => self.push(sign),
                    Some(sign) => {
                        self.push('\\');
                        self.push(sign);
                    }
                },
                Some(sign) => self.push(sign),
                None => return Err("a quote is not closed"),
            }
        }
    }

    fn variable(&mut self, quoted: bool) {
        let mut name = String::new();
        if self.rest.next_if_eq(&'{').is_some() {
            while let Some(sign) = self.rest.next_if(|sign| *sign != '}' && *sign != '\n') {
                name.push(sign);
            }
            self.rest.next_if_eq(&'}');
        } else if let Some(sign) = self.rest.next_if(|sign| matches!(sign, '?' | '#' | '*' | '@')) {
            name.push(sign);
        } else {
            while let Some(sign) = self.rest.next_if(|sign| sign.is_ascii_alphanumeric() || *sign == '_') {
                name.push(sign);
            }
        }
        match name.is_empty() {
            // `$"..."` marks a text for translation.
            true if self.rest.peek() == Some(&'"') => {}
            true => self.push('$'),
            false => {
                self.parts += 1;
                self.word.get_or_insert_default().push(Piece::Variable { name, quoted });
            }
        }
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl Parser<'_> {
    /// The current word, if it is literal text.
    fn plain(&self) -> Option<&str> {
        match self.tokens.get(self.at) {
            Some(Token::Word(word)) => plain(word),
            _ => None,
        }
    }

    /// Parses commands up to one of these words or a closing brace, which is not consumed.
    fn block(&mut self, ends: &[&str], depth: usize) -> Result<Block, &'static str> {
        if depth > DEPTH {
            return Err("too many blocks within blocks");
        }
        let mut block = Vec::new();
        while let Some(token) = self.tokens.get(self.at) {
            match token {
                Token::End => self.at += 1,
                Token::Close => break,
                Token::Open => return Err("a block has no command"),
                Token::Word(_) if self.plain().is_some_and(|word| ends.contains(&word)) => break,
                Token::Word(_) => block.push(self.statement(depth)?),
            }
        }
        Ok(Rc::new(block))
    }

    fn expect(&mut self, words: &[&str]) -> Result<String, &'static str> {
        let word = self.plain().filter(|word| words.contains(word)).map(str::to_owned);
        self.at += 1;
        word.ok_or("an if or a loop is not closed")
    }

    fn statement(&mut self, depth: usize) -> Result<Statement, &'static str> {
        match self.plain() {
            Some("if") => self.condition(depth),
            Some(word @ ("while" | "until")) => {
                let until = word == "until";
                self.at += 1;
                let condition = self.block(&["do"], depth + 1)?;
                self.expect(&["do"])?;
                let body = self.block(&["done"], depth + 1)?;
                self.expect(&["done"])?;
                Ok(Statement::While { until, condition, body })
            }
            Some("for") => {
                self.at += 1;
                let mut words = self.words();
                let values = words.split_off(words.len().min(2));
                let variable = words.first().and_then(plain).unwrap_or_default().to_owned();
                self.block(&["do"], depth + 1)?;
                self.expect(&["do"])?;
                let body = self.block(&["done"], depth + 1)?;
                self.expect(&["done"])?;
                Ok(Statement::For { variable, values, body })
            }
            _ => {
                let words = self.words();
                // A function's block may start on a later line.
                if words.first().and_then(plain) == Some("function") && words.len() > 1 {
                    while self.tokens.get(self.at) == Some(&Token::End) {
                        self.at += 1;
                    }
                }
                if self.tokens.get(self.at) != Some(&Token::Open) {
                    return Ok(Statement::Command(words));
                }
                self.at += 1;
                let body = self.block(&[], depth + 1)?;
                if self.tokens.get(self.at) != Some(&Token::Close) {
                    return Err("a brace is not closed");
                }
                self.at += 1;
                Ok(Statement::Braces { words, body })
            }
        }
    }

    fn condition(&mut self, depth: usize) -> Result<Statement, &'static str> {
        self.at += 1;
        let mut arms = Vec::new();
        loop {
            let condition = self.block(&["then"], depth + 1)?;
            self.expect(&["then"])?;
            let body = self.block(&["elif", "else", "fi"], depth + 1)?;
            arms.push((condition, body));
            match self.expect(&["elif", "else", "fi"])?.as_str() {
                "elif" => {}
                "fi" => return Ok(Statement::If { arms, otherwise: Block::default() }),
                _ => {
                    let otherwise = self.block(&["fi"], depth + 1)?;
                    self.expect(&["fi"])?;
                    return Ok(Statement::If { arms, otherwise });
                }
            }
        }
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.tokens.get(self.at) {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }
}

fn plain(word: &Word) -> Option<&str> {
    match word.as_slice() {
        [Piece::Text(text)] => Some(text),
        _ => None,
    }
}
